# Requests outlive their engines: killed, drained, replaced; and go to another
# engine of the group.  The mock checks that the tokens which it is told to go
# on from are those it would have said.

use strict;
use warnings;

use Test::More;
use Time::HiRes ();

use Moe;

*chat = \&Moe::chat;

sub whole { my ($path, $body) = chat(@_); delete $body->{stream};
            return ($path, $body) }

sub said { my $n = shift; return join '', map { "w$_ " } 0 .. $n - 1 }

my $moe = Moe->new;

# More engines, each at a socket of its own.
my %other;
sub other {
    my ($name, @args) = @_;
    my $path = "$moe->{dir}/$name.sock";
    my $pid = $other{$name} = $moe->spawn("$name.log",
        "$Moe::build/t/tools/mock_engine", '--socket', $path, @args);
    $moe->until("engine $name", sub { -S $path });
    return $pid;
}

sub stop_other {
    my ($name, $signal) = @_;
    my $pid = delete $other{$name};
    kill $signal // 'KILL', $pid;
    $moe->await_exit($name, $pid);
}

# The first event of a stream, and later what follows it, as one text.
sub begin {
    for my $c (@_) {
        my $e = $c->event;
        $e = $c->event while $e && !$e->{json};
        my $d = $e->{json}{choices}[0]{delta};
        $c->{begun} = [$d->{content} // '', $d->{reasoning_content} // ''];
    }
}

sub finish {
    my $c = shift;
    my $r = $c->collect;
    $r->{content} = $c->{begun}[0] . $r->{content};
    $r->{reasoning} = $c->{begun}[1] . ($r->{reasoning} // '');
    return $r;
}

# All engines of both groups.
sub await_group {
    $moe->until("engines of $_", sub {
        ($moe->get($_)->{json}{engines_ready} // 0) == 2 })
        for '/group-health', '/prefix-health';
}

sub worker { return $moe->get($_[0] // '/health')->{json}{worker} // {} }

my $group = 'socket unix:%%DIR%%/a.sock; socket unix:%%DIR%%/b.sock;';
$moe->mock;
$moe->nginx(engine => 'resume_timeout 20s; ping 100ms;', http => <<"CONF",
    log_format moe '\$status|\$moe_completion_tokens|\$moe_finish_reason';
    access_log %%DIR%%/moe.log moe;
    moe_engine hasty { socket %%SOCKET%%; resume_timeout 300ms; }
    moe_engine group { $group }
    moe_engine prefix { $group balance prefix; }
    server {
        listen 127.0.0.1:%%PORT_cloud%%;
        location / {
            return 200 "length \$http_content_length, \$request_uri";
        }
    }
CONF
    server => <<'CONF');
    location /hasty/ { moe_pass hasty; }
    location /group/ { moe_pass group; }
    location /prefix/ { moe_pass prefix; }
    location = /group-health { moe_health group; }
    location = /prefix-health { moe_health prefix; }
    location /cloud/ { moe_pass group; error_page 503 = @cloud; }
    location @cloud { proxy_pass http://127.0.0.1:%%PORT_cloud%%; }
CONF
$moe->wait_ready;

sub to { my ($where, $path, $body) = @_; return ($path =~ s{/v1}{$where}r, $body) }


# -- killed in the middle --------------------------------------------------

for my $round (1 .. 3) {
    my @s = map { $moe->stream(chat('tokens=40 delay_ms=15')) } 1 .. 3;
    my $think = $moe->stream(chat('tokens=30 reasoning=10 delay_ms=15'));
    begin(@s, $think);
    my $two = $moe->stream(chat('tokens=40 delay_ms=15', n => 2));
    my $json = $moe->client->request('POST', whole('tokens=40 delay_ms=15'));
    my $wait = $moe->client->request('POST', whole('tokens=3 prefill_ms=300'));
    $moe->until('all', sub { worker()->{open} == 7 });

    $moe->kill_engine;
    Time::HiRes::sleep(0.1 * $round);
    $moe->restart_engine;

    for my $c (@s) {
        my $r = finish($c);
        is $r->{content}, said(40), 'a stream is whole';
        is $r->{n_events}, 40, 'with no event more or less';
        is $r->{finish}, 'stop', 'and a reason';
        ok $r->{done} && !$r->{error}, 'and a good end';
    }
    my @text = ('', '');
    while (my $e = $two->event) {
        my $c = ($e->{json} // {})->{choices}[0] // next;
        $text[ $c->{index} ] .= $c->{delta}{content} // '';
    }
    is "@text", said(40) . ' ' . said(40), 'two choices';
    my $r = finish($think);
    is $r->{reasoning}, join('', map { "r$_ " } 0 .. 9), 'reasoning';
    is $r->{content}, said(30), 'and its answer';
    $r = $json->response;
    is $r->{status}, 200, 'an answer in one piece';
    is $r->{json}{choices}[0]{message}{content}, said(40), 'is whole';
    is $r->{json}{usage}{completion_tokens}, 40, 'and counted once';
    is $wait->response->{json}{choices}[0]{message}{content}, said(3),
       'one that had not begun';
}
cmp_ok worker()->{resumed}, '>', 10, 'requests were resumed';

# A stream that is paused for long gets pings, and a limit.
my $c = $moe->stream(chat('tokens=30 delay_ms=20'));
begin($c);
my $h = $moe->stream(to('/hasty', chat('tokens=30 delay_ms=20')));
$h->event;
my $new = $moe->client->request('POST', to('/hasty', whole('prefill_ms=5000')));
$moe->until('all', sub { worker()->{open} == 1 });
Time::HiRes::sleep(0.2);
$moe->kill_engine;
my $r = $h->collect;
is $r->{error}{code}, 'engine_unavailable', 'resume_timeout: an error event';
ok $r->{done}, 'and [DONE]';
is $new->response->{status}, 503, 'a status for who has had no header';
is $moe->post(whole('tokens=1'))->{status}, 503,
   'a new request does not wait for an engine that is not there';
$moe->restart_engine;
$r = finish($c);
is $r->{content}, said(30), 'the patient one goes on';
cmp_ok $r->{n_comments}, '>', 1, 'and had pings';

# The client leaves in between.
$c = $moe->stream(chat('tokens=3000 delay_ms=20'));
$c->event;
$moe->kill_engine;
$moe->until('loss', sub { !worker()->{open} });
$c->close;
Time::HiRes::sleep(0.1);
$moe->restart_engine;
$moe->wait_ready;
is worker()->{open}, 0, 'who left in the pause is not resumed';

# Each use loses its engine before a token: given up after three.
$c = $moe->client->request('POST', whole('tokens=9 delay_ms=9 at=0 close'));
$r = $c->response;
is $r->{status}, 503, 'a request that kills its engines is given up';
$moe->allow_log(qr/has lost 3 engines without a token/);


# -- drained ---------------------------------------------------------------

# The old engine ends what it has; a new one is at the socket already.
$moe->wait_ready;
$c = $moe->stream(chat('tokens=100 delay_ms=20'));
begin($c);
my $old = delete $moe->{engine};
kill 'USR1', $old;
$moe->restart_engine;
$moe->until('the new engine', sub {
    $moe->post(whole('tokens=2'))->{status} == 200 });
pass 'new requests go to the new engine';
is finish($c)->{content}, said(100), 'the old one ends its stream';
like Moe::slurp("$moe->{dir}/engine.log"), qr/attach 1 .*attach 1 /s,
     'both have been attached';
kill 'TERM', $old;
is $moe->await_exit('the old engine', $old), 0, 'and leaves';


# -- a group ---------------------------------------------------------------

is $moe->post(to('/group', whole('tokens=1')))->{status}, 503, 'no engine';
$r = $moe->post(to('/cloud', whole('x' x 3000)));
is $r->{status}, 200, 'error_page takes it elsewhere';
like $r->{body}, qr/^length (\d+),/, 'by proxy_pass';
cmp_ok +($r->{body} =~ /length (\d+)/)[0], '>', 3000, 'with its body';

other($_) for qw(a b);
await_group();
my @s = map { $moe->stream(to('/group', chat('tokens=200 delay_ms=10'))) } 1 .. 6;
begin(@s);
my $log = sub { return scalar(() = Moe::slurp("$moe->{dir}/$_[0].log")
                              =~ /^request/mg) };
is $log->('a') . $log->('b'), '33', 'the least busy engine takes the next';

stop_other('a');
is finish($_)->{content}, said(200), 'a stream of the lost one goes on'
    for @s;
is $log->('b'), 6, 'at the other engine';
is $moe->post(to('/group', whole('tokens=1')))->{status}, 200,
   'new requests too';
is $moe->get('/group-health')->{json}{engines_ready}, 1, 'one of two is ready';
is $moe->get('/group-health')->{status}, 200, 'which is enough';

# One has no room: the other one takes it.
stop_other('b');
other('a', '--limit', 1);
other('b');
await_group();
@s = map { $moe->client->request('POST', to('/group',
           chat('tokens=20 delay_ms=20'))) } 1 .. 8;
is join(' ', map { $_->head->{status} } @s), join(' ', (200) x 8),
   'the refusals of a full engine are not seen';
$_->collect for @s;
like Moe::slurp("$moe->{dir}/a.log"), qr/^error/m, 'and there were some';
stop_other('a');
other('a');
await_group();

# The same beginning goes to the same engine.
for my $n (1 .. 8) {
    my @before = map { $log->($_) } qw(a b);
    $moe->post(to('/prefix', whole("tokens=1 x$n"))) for 1 .. 5;
    my @after = map { $log->($_) } qw(a b);
    ok $after[0] - $before[0] == 5 || $after[1] - $before[1] == 5,
       "prefix $n stays with its engine";
}
my @at = map { $log->($_) } qw(a b);
@s = map { $moe->client->request('POST', to('/prefix',
           chat('tokens=100 delay_ms=10'))) } 1 .. 40;
$_->head for @s;
cmp_ok $log->($_->[0]) - $_->[1], '>=', 10, "but $_->[0] has its share"
    for ['a', $at[0]], ['b', $at[1]];
$_->collect for @s;

stop_other($_, 'TERM') for qw(a b);
my $w = worker();
is $w->{accepted}, $w->{done} + $w->{error} + $w->{cancelled},
   'every use of a slot has ended once';
$moe->stop_nginx;
like Moe::slurp("$moe->{dir}/moe.log"), qr/^200\|40\|stop$/m,
     'a resumed request is logged as what it was';

$moe->allow_log(qr/the engine is gone/, qr/shutting down/);
$moe->done;
