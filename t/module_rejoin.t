# A client that has lost its connection gets the rest of its stream: from any
# worker, across a reload, for moe_resume seconds; nobody else does.

use strict;
use warnings;

use POSIX ();
use Socket qw(AF_UNIX SOCK_SEQPACKET SOCK_NONBLOCK pack_sockaddr_un);
use Test::More;
use Time::HiRes ();

use Moe;

*chat = \&Moe::chat;

my $moe = Moe->new;

sub said { my $n = shift; return join '', map { "w$_ " } 0 .. $n - 1 }

# Reads events until $n have brought text; what they said and their ids are
# added to the client's own.
sub take {
    my ($c, $n) = @_;
    $c->{said} //= '';
    while (my $e = $c->event) {
        push @{ $c->{events} }, $e if defined $e->{data};
        my $d = ($e->{json} // next)->{choices}[0]{delta};
        $c->{id} //= $e->{json}{id};
        $c->{said} .= $d->{content} // '';
        last if defined $n && ($d->{content} // '') ne '' && --$n == 0;
    }
    $c->{last} = $c->{events}[-1]{id};
    return $c;
}

# Comes back for the rest, from the last event that $c had.
sub back {
    my ($c, %headers) = @_;
    my $b = $moe->client->request('GET', "/v1/streams/$c->{id}", undef,
        defined $c->{last} ? ('Last-Event-ID' => $c->{last}) : (), %headers);
    $b->head;
    $b->{$_} = $c->{$_} for qw(id said last);
    $b->{events} = [@{ $c->{events} // [] }];
    return $b;
}

sub begin {
    my ($script, $n, @headers) = @_;
    return take($moe->stream(chat($script), @headers), $n);
}

# Each event once, in order, to the end.
sub whole {
    my ($c, $n, $what) = @_;
    is $c->{said}, said($n), "$what: each token once";
    is join(' ', map { $_->{id} } @{ $c->{events} }),
       join(' ', 1 .. @{ $c->{events} }), "$what: ids without a gap";
    is $c->{events}[-1]{data}, '[DONE]', "$what: to the end";
}

# The name of the socket on which the worker of a stream lends it out.
sub share { return "\0ngx_moe." . substr $_[0]{id}, -16 }

sub seqpacket {
    socket my $s, AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0
        or die "socket: $!";
    return $s;
}

# Which worker that is.
sub holder {
    my $name = share($_[0]) =~ s/^\0/@/r;
    my ($inode) = Moe::slurp('/proc/net/unix') =~ /(\d+) \Q$name\E$/m;
    for my $pid ($moe->workers) {
        return $pid if grep { (readlink // '') eq "socket:[$inode]" }
                       glob "/proc/$pid/fd/*";
    }
}

sub open_slots { return $moe->health->{worker}{open} // 0 }

my $location = 'moe_resume 3s;';
my %conf = (http => <<'CONF', server => <<'CONF2');
    log_format moe '$request_method|$status|$moe_completion_tokens|'
                   '$moe_delivered_tokens|$moe_finish_reason';
    access_log %%DIR%%/moe.log moe;
    moe_token_zone $http_authorization zone=keys:1m;
CONF
    location /short/ { moe_pass main; moe_resume 300ms; }
    location /small/ { moe_pass main; moe_resume 5s; moe_resume_buffer 8k; }
    location /never/ { moe_pass main; }
    location /keyed/ { moe_pass main; moe_resume 3s; moe_resume_key $arg_who; }
    location /poor/  { moe_pass main; moe_resume 3s;
                       moe_limit_tokens zone=keys rate=1/s burst=30; }
    location = /metrics { moe_status prometheus; }
CONF2
$moe->mock;
$moe->nginx(engine => 'ping 200ms;', location => $location, %conf);
$moe->wait_ready;

sub logged { return (split /\n/, Moe::slurp("$moe->{dir}/moe.log"))[-1] }

sub counter {
    my $name = shift;
    return $moe->get('/metrics')->{body} =~ /^\Q$name\E\{[^}]*\} (\S+)/m
        ? $1 : undef;
}


# -- one worker ------------------------------------------------------------

for my $hard (0, 1) {
    my $c = begin('tokens=40 delay_ms=10', 5);
    $c->close(hard => $hard);
    my $b = take(back($c));
    is $b->{status}, 200, 'the rest of a stream';
    is $b->{headers}{'content-type'}, 'text/event-stream', 'is one as well';
    whole($b, 40, $hard ? 'reset' : 'closed');
}

{
    my $c = begin('tokens=40 delay_ms=5', 5);
    my $delivered = counter('moe_delivered_tokens_total');
    $c->close;
    $moe->until('end of the stream', sub { !open_slots() });
    my $b = take(back($c));
    whole($b, 40, 'a stream that has ended meanwhile');
    ok eval { $moe->until('line', sub { logged() eq 'GET|200|-|-|-' }) },
       'the second request is logged';
    like Moe::slurp("$moe->{dir}/moe.log"), qr/^POST\|200\|40\|\d+\|stop$/m,
        'the first was when the stream ended, with all its tokens';
    ok eval { $moe->until('count', sub {
        counter('moe_delivered_tokens_total') >= $delivered + 35 }) },
        'what a client was given in the end counts as delivered';
    whole(take(back($c)), 40, 'asked for again');

    is back($b)->{status}, 204, 'who has it all: 204, an EventSource stops';
    delete @$c{qw(last said events)};
    whole(take(back($c)), 40, 'without Last-Event-ID all of it');
}

# The client that had everything sent but not received it.
{
    my $c = begin('tokens=20', 3);
    my $id = $c->{last};
    take($c);
    $c->{last} = $id;
    $c->{events} = [@{ $c->{events} }[0 .. $id - 1]];
    $c->{said} = said(3);
    whole(take(back($c)), 20, 'a stream that ended before the client knew');
}

# Back before the old connection is known to be dead: the new one has it.
{
    my $c = begin('tokens=60 delay_ms=10', 5);
    my $b = back($c);
    my $d = back(take($b, 5));
    whole(take($d), 60, 'the latest client has the stream');
    take($c), take($b);
    isnt $c->{events}[-1]{data}, '[DONE]', 'the first one does not';
    isnt $b->{events}[-1]{data}, '[DONE]', 'nor does the second';
}

{
    my $c = begin('tokens=4 prefill_ms=1 delay_ms=400', 1);
    $c->close;
    my $b = back($c);
    my @comments;
    while (my $e = $b->event) {
        push @comments, $e->{comment} if defined $e->{comment};
    }
    is $comments[0], 'ping', 'who came back is pinged too';
}


# -- who, and which --------------------------------------------------------

{
    my @a = (Authorization => 'Bearer a');
    my $c = begin('tokens=400 delay_ms=10', 5, @a);
    $c->close;
    is back($c)->{status}, 404, 'no credentials: no such stream';
    is back($c, Authorization => 'Bearer b')->{status}, 404,
       "another tenant's: no such stream";
    my $wrong = $c->{id};
    substr($wrong, 12, 1) =~ tr/0-9a-f/1-9a-f0/;
    is $moe->get("/v1/streams/$wrong", @a)->{status}, 404, 'another id';
    for ('', 'x', 'chatcmpl-', $c->{id} . '0', substr($c->{id}, 0, -1),
         $c->{id} =~ s/.$/g/r)
    {
        is $moe->get("/v1/streams/$_", @a)->{status}, 404, "not an id: $_";
    }
    my $r = $moe->get("/v1/streams/$c->{id}", @a, 'Last-Event-ID' => '9999');
    is $r->{status}, 400, 'an event that has not been';
    is $r->{json}{error}{param}, 'Last-Event-ID', 'is said to be it';
    is $moe->get("/v1/streams/$c->{id}", @a, 'Last-Event-ID' => $_)->{status},
       400, "not an event's id: $_" for '-1', 'x', '99999999999999999999';
    is $moe->post("/v1/streams/$c->{id}", '{}', @a)->{headers}{allow},
       'GET, DELETE', 'methods';
    is $moe->get("/never/streams/$c->{id}", @a)->{status}, 404,
       'where nothing is kept';

    is $moe->client->request('DELETE', "/v1/streams/$c->{id}")
       ->response->{status}, 404, 'only its owner can end it';
    is open_slots(), 1, 'it goes on';
    is $moe->client->request('DELETE', "/v1/streams/$c->{id}", undef, @a)
       ->response->{status}, 204, 'its owner ends it';
    ok eval { $moe->until('cancel', sub { !open_slots() }) },
       'and the engine knows';
    is back($c, @a)->{status}, 404, 'then it is gone';
    # A request is logged when its client has the answer.
    ok eval { $moe->until('line', sub { logged() =~ /^GET\|404/ }) },
       'GET is logged';
    ok eval { $moe->until('line', sub {
        Moe::slurp("$moe->{dir}/moe.log")
            =~ /^POST\|200\|\d+\|\d+\|cancelled$/m }) },
       'cancelled is logged';
}

{
    my $c = take($moe->stream((chat('tokens=20 delay_ms=10'))[0]
                              =~ s/v1/keyed/r . '?who=me',
                              (chat('tokens=20 delay_ms=10'))[1]), 2);
    $c->close;
    is $moe->get("/keyed/streams/$c->{id}?who=you")->{status}, 404,
       'moe_resume_key: another';
    is $moe->get("/keyed/streams/$c->{id}?who=me")->{status}, 200, 'the same';
}

{
    my $c = take($moe->stream('/never/chat/completions',
                              (chat('tokens=400 delay_ms=10'))[1]), 2);
    is $c->{events}[0]{id}, undef, 'no ids without moe_resume';
    $c->close;
    ok eval { $moe->until('cancel', sub { !open_slots() }) },
       'and a client that leaves ends its request';
}


# -- time and room ---------------------------------------------------------

{
    my $c = take($moe->stream('/short/chat/completions',
                              (chat('tokens=4000 delay_ms=10'))[1]), 2);
    $c->close;
    my $at = Time::HiRes::time();
    ok eval { $moe->until('cancel', sub { !open_slots() }) },
       'nobody comes back: cancelled';
    cmp_ok Time::HiRes::time() - $at, '>', 0.2, 'not before its time';
    is $moe->get("/short/streams/$c->{id}")->{status}, 404, 'and gone';
}

{
    my $c = take($moe->stream('/small/chat/completions',
                              (chat('tokens=600 delay_ms=2'))[1]), 2);
    $c->close;
    my $then = -1;
    $moe->until('a pause', sub {
        my $now = counter('moe_completion_tokens_total');
        Time::HiRes::sleep(0.2);
        my $still = $now == $then;
        $then = $now;
        return $still;
    });
    is open_slots(), 1, 'a full buffer stops the stream, nothing is lost';
    $c->{id} =~ s/^/..\/..\/small\/streams\//;
    my $b = take(back($c));
    whole($b, 600, 'a small buffer');
    my $r = $moe->get("/small/streams/" . $b->{events}[0]{json}{id},
                      'Last-Event-ID' => 1);
    is $r->{status}, 410, 'what was given away is not kept for ever';
    is $r->{json}{error}{code}, 'events_gone', 'and said so';
}

{
    my @a = (Authorization => 'Bearer poor');
    my $c = take($moe->stream('/poor/chat/completions',
        (chat('tokens=400 delay_ms=2'))[1], @a), 3);
    $c->close;
    $moe->until('end', sub { !open_slots() });
    $c->{id} =~ s/^/..\/..\/poor\/streams\//;
    my $b = take(back($c, @a));
    is $b->{events}[-2]{json}{choices}[0]{finish_reason}, 'length',
       'a budget ends a stream that nobody reads';
}


# -- the engine goes, a client goes ----------------------------------------

{
    my $c = begin('tokens=60 delay_ms=15', 5);
    $c->close;
    $moe->allow_log(qr/the engine is gone/);
    $moe->kill_engine;
    $moe->restart_engine;
    whole(take(back($c)), 60, 'engine and client lost');
}


# -- HTTP/2 ----------------------------------------------------------------

SKIP: {
    my $curl = Moe::find('curl') or skip 'no curl', 3;
    my $body = $Moe::Client::json->encode((chat('tokens=60 delay_ms=20'))[1]);
    my $pid = $moe->spawn('h2.out', $curl, '-sN', '--http2-prior-knowledge',
        'http://127.0.0.1:' . $moe->port('h2') . '/v1/chat/completions',
        '-d', $body);
    $moe->until('tokens', sub { Moe::slurp("$moe->{dir}/h2.out") =~ /w9 / });
    kill 'KILL', $pid;
    $moe->await_exit('curl', $pid);
    my ($id) = Moe::slurp("$moe->{dir}/h2.out") =~ /"id":"([^"]+)"/;
    whole(take(back({ id => $id })), 60, 'over HTTP/2');
}

$moe->stop_nginx;


# -- two workers, a reload, an upgrade -------------------------------------

$moe->nginx(engine => 'ping 200ms;', location => $location, %conf, workers => 2);
$moe->wait_ready;
my @workers = $moe->workers;
for my $round (1 .. 12) {
    my $c = begin('tokens=30 delay_ms=10', 3);
    $c->close;
    my $b = take(back($c));
    $b->{said} eq said(30) && $b->{events}[-1]{data} eq '[DONE]'
        or fail "round $round: $b->{status} $b->{said}";
}
pass 'of two workers either gives out the rest';

{
    my @c = map { begin('tokens=100 delay_ms=20', 3) } 1 .. 6;
    $_->close for @c;
    $moe->reload;
    whole(take($_), 100, 'across a reload') for map { back($_) } @c;
    ok eval { $moe->until('old workers', sub {
        !grep { kill 0, $_ } @workers }, 20) }, 'old workers end';
}

{
    my @c = map { begin('tokens=150 delay_ms=20', 3) } 1 .. 4;
    $_->close for @c;
    my $old = $moe->upgrade;
    whole(take($_), 150, 'across a binary upgrade') for map { back($_) } @c;
    $moe->await_exit('the old master', $old, 60);
}

# The worker that holds it has no time for others: it may have some later.
{
    my $c = begin('tokens=100 delay_ms=20', 3);
    $c->close;
    my $holder = holder($c);
    $moe->allow_log(qr/connect\(\) to a stream's worker failed/);
    kill 'STOP', $holder;
    my @queue;
    for (1 .. 600) {
        push @queue, seqpacket();
        connect $queue[-1], pack_sockaddr_un(share($c)) or last;
    }
    is back($c)->{status}, 503, 'a worker that does not answer: not 404';
    @queue = ();
    kill 'CONT', $holder;
    whole(take(back($c)), 100, 'a worker that was busy');
}

# The worker that held it is no more.
{
    my $c = begin('tokens=300 delay_ms=20', 3);
    $moe->allow_log(qr/exited on signal 9/);
    kill 'KILL', $moe->workers;
    $c->close;
    $moe->wait_ready;
    is back($c)->{status}, 404, 'a stream does not outlive its worker';

    # Nor is it told to another user, who has taken the worker's name.
    SKIP: {
        skip 'only root can be another user', 3 if $> != 0;
        pipe my $from, my $to or die "pipe: $!";
        my $pid = fork // die "fork: $!";
        if (!$pid) {
            POSIX::setuid(65534);
            my $s = seqpacket();
            vec(my $wait = '', fileno $s, 1) = 1;
            my $ok = $> == 65534 && bind($s, pack_sockaddr_un(share($c)))
                     && listen($s, 5);
            syswrite $to, $ok ? "listens\n" : "fails: $!\n";
            select my $readable = $wait, undef, undef, 30;
            accept my $asks, $s or POSIX::_exit(1);
            vec($wait = '', fileno $asks, 1) = 1;
            select $readable = $wait, undef, undef, 30;
            my $n = sysread $asks, my $ask, 4096;
            syswrite $to, "heard " . ($n // "nothing: $!") . "\n";
            syswrite $asks, pack 'L', 200;
            POSIX::_exit(0);
        }
        close $to;
        is scalar <$from>, "listens\n", 'somebody else has its name';
        is back($c)->{status}, 404, 'and is not believed';
        is scalar <$from>, "heard 0\n", 'nor asked';
        $moe->await_exit('the other one', $pid);
    }
}

$moe->done;
