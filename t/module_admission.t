# Who is let in: bounded by requests and by tokens that wait, decided in the
# worker from the engine's page; what the operator says of a
# request; and what ten times too many clients see.

use strict;
use warnings;

use Test::More;
use Time::HiRes ();

use Moe;

*chat = \&Moe::chat;

my $long = $ENV{LONG};
my $moe = Moe->new;

sub engine_log { return Moe::slurp("$moe->{dir}/engine.log") }

# Requests that the engine has seen.
sub seen { return scalar(() = engine_log() =~ /^request /mg) }

sub queued { return $moe->health->{queued} // 0 }

my $server = <<'CONF';
    location /few/    { moe_pass few; }
    location /tokens/ { moe_pass tokens; }
    location /who/    { moe_pass main; moe_priority $http_x_priority;
                        moe_cache_salt $http_authorization; }
    location /error/  { moe_pass few; error_page 429 = @other; }
    location @other   { return 200 other; }
CONF
my $http = <<'CONF';
    moe_engine few { socket %%SOCKET%%; queue 2; }
    moe_engine tokens { socket %%SOCKET%%; queue_tokens 100; }
    moe_engine brief { socket %%SOCKET%%; queue_timeout 2s;
                       first_token_timeout 3s; request_timeout 4s; }
CONF


# -- what the operator says ------------------------------------------------

$moe->mock;
$moe->nginx(http => $http, server => $server
            . 'location /brief/ { moe_pass brief; }');
$moe->wait_ready;

sub dump_of {
    my ($where, %headers) = @_;
    my ($path, $body) = chat('dump');
    delete $body->{stream};
    my $r = $moe->post($path =~ s/v1/$where/r, $body, %headers);
    return $r->{status} == 200 ? $r->{json}{choices}[0]{message}{content}
                               : $r->{body};
}

like dump_of('who'), qr/ priority=0 (?!.*salt=)/, 'nothing said';
like dump_of('who', 'X-Priority' => $_), qr/ priority=$_ /, "priority $_"
    for -7, 0, 5, 2147483647;
like dump_of('who', 'X-Priority' => $_), qr/ priority=0 /,
    "no priority: $_" for 'x', '1x', '-', '2147483648', '1.5';
like dump_of('v1', 'X-Priority' => 5), qr/ priority=0 /,
    'a client does not say it';
like dump_of('who', Authorization => "Bearer $_"), qr/ salt=<Bearer $_>$/,
    "salt $_" for 'a', 'ab', 'abc', 'abcd';
like dump_of('who', Authorization => 'x' x 1024), qr/ salt=<x{1024}>$/,
    'a salt of 1024 bytes';
like dump_of('who', Authorization => 'x' x 1025), qr/too long/, 'not of more';
like dump_of('v1'), qr/ deadline_ms=630000 /, 'the deadline: both timeouts';
like dump_of('brief'), qr/ deadline_ms=4000 /, 'or that of the request';

# A salt is in the middle of what is sent again.
{
    my ($path, $body) = chat('tokens=30 delay_ms=20');
    my $c = $moe->stream($path =~ s/v1/who/r, $body,
                         Authorization => 'Bearer odd');
    1 until ($c->event->{json}{choices}[0]{delta}{content} // '') ne '';
    $moe->allow_log(qr/the engine is gone/);
    $moe->kill_engine;
    $moe->restart_engine;
    my $r = $c->collect;
    is $r->{content}, join('', map { "w$_ " } 1 .. 29),
       'with a salt to the next engine';
}
$moe->stop_engine;


# -- bounded ---------------------------------------------------------------

$moe->mock('--batch', 1, '--queue-tokens', 1000);
$moe->wait_ready;
{
    # A burst, which is over before the engine could tell of it: the worker
    # counts its own.  One runs, two wait.
    my ($path, $body) = chat('prefill_ms=1000 tokens=1');
    my %n;
    delete $body->{stream};
    my @c = map { $moe->client->request('POST', $path =~ s/v1/few/r, $body) }
            1 .. 20;
    $n{ $_->response->{status} }++ for @c;
    is_deeply \%n, { 200 => 3, 429 => 17 }, 'a burst: those that may wait';
}
{
    my $run = $moe->stream(chat('tokens=100000 delay_ms=5'));
    $run->event;
    is queued(), 0, 'one runs';

    my ($path, $body) = chat('tokens=1');
    my $few = $path =~ s/v1/few/r;
    my @wait = map { $moe->client->request('POST', $few, $body) } 1 .. 2;
    $moe->until('two to wait', sub { queued() == 2 });

    my $n = seen();
    my $r = $moe->post($few, $body);
    is $r->{status}, 429, 'a third is refused';
    is $r->{json}{error}{code}, 'engine_overloaded', 'and why';
    cmp_ok $r->{headers}{'retry-after'}, '>=', 1, 'and when to come back';
    is seen(), $n, 'without a word to the engine';
    is $moe->post($path =~ s/v1/error/r, $body)->{body}, 'other',
       'error_page takes it elsewhere';

    my $large = $body->{messages}[0]{content} = 'x' x 600 . ' mock tokens=1';
    my $tokens = $path =~ s/v1/tokens/r;
    push @wait, $moe->client->request('POST', $tokens, $body);
    $moe->until('three to wait', sub { queued() == 3 });
    $r = $moe->post($tokens, $body);
    is $r->{status}, 429, 'too many tokens wait';
    is $r->{headers}{'retry-after'}, 1, 'come back';

    $body->{messages}[0]{content} = 'x' x 4000 . ' mock tokens=1';
    push @wait, $moe->client->request('POST', $path, $body);
    $moe->until('four to wait', sub { queued() == 4 });
    is $moe->post($path, $body)->{status}, 429, 'more than the engine wants';

    $run->close;
    is $_->response->{status}, 200, 'who waited is answered' for @wait;
    is $moe->post($few, $body)->{status}, 200, 'and there is room again';
}

# Those that fit into the batch do not wait, also before the engine said so.
$moe->stop_engine;
$moe->mock('--batch', 64);
$moe->wait_ready;
{
    my ($path, $body) = chat('tokens=3 prefill_ms=50');
    my @c = map { $moe->client->request('POST', $path =~ s/v1/few/r, $body) }
            1 .. 64;
    my %status;
    $status{ $_->response->{status} }++ for @c;
    is_deeply \%status, { 200 => 64 }, 'a burst that fits is let in whole';
}
$moe->stop_engine;

# Four workers do not know of each other what they send in one step; the engine
# holds the bound, and who is refused there sees no difference.
{
    my $four = Moe->new;
    $four->mock('--quiet', '--batch', 1, '--queue', 2);
    $four->nginx(workers => 4);
    my %pid;
    $four->until('four workers', sub {
        my $h = $four->health;
        $pid{ $h->{worker}{pid} } = 1 if ($h->{status} // '') eq 'ok';
        keys %pid == 4;
    });
    my ($path, $body) = chat('prefill_ms=1000 tokens=1');
    delete $body->{stream};
    my @r = map { $_->response } map { $four->client->request('POST', $path,
                  $body) } 1 .. 40;
    my @no = grep { $_->{status} != 200 } @r;
    cmp_ok @r - @no, '>=', 1, 'four workers: some are let in';
    cmp_ok @r - @no, '<=', 4, 'no more than the engine has room for';
    is_deeply [grep { $_->{status} != 429 || !$_->{headers}{'retry-after'}
                      || $_->{json}{error}{code} ne 'engine_overloaded' } @no],
              [], 'the others see one and the same refusal';
    $four->stop;
}

# -- ten times too many ----------------------------------------------------

# The engine has 16 places, and 16 wait; 320 clients ask again and again.
$moe->mock('--batch', 16, '--queue', 16);
$moe->wait_ready;
{
    my $seconds = $long ? 20 : 4;
    my $tool = "$Moe::build/t/tools/overload";
    my $out = `$tool @{[ $moe->port ]} 32 $seconds`;
    my ($alone) = $out =~ /^answers=(\d+)/ or die "no answers: $out";
    $out = `$tool @{[ $moe->port ]} 320 $seconds`;
    note $out;
    my %n = $out =~ /(\w+)=([\d.]+)/g;
    cmp_ok $n{refused}, '>', $n{answers}, 'most are refused';
    is $n{failed}, 0, 'none fails in another way';
    cmp_ok $n{answers} / $alone, '>=', 0.95,
        'as many are answered as without the others: goodput';
    cmp_ok $n{refusal_p99_ms}, '<=', $long ? 5 : 25,
        'refusals come at once';
}

$moe->done;
