# Engines that break the contract: the channel is detached with one line in the
# log, its streams end well, the worker lives and attaches again.

use strict;
use warnings;

use Test::More;

use Moe;

*chat = \&Moe::chat;


# -- frames ----------------------------------------------------------------

my $moe = Moe->new;
$moe->mock;
$moe->nginx(engine => 'heartbeat 1s; resume_timeout 0;');
$moe->wait_ready;
my ($worker) = $moe->workers;

sub attached { return $moe->get('/health')->{json}{worker}{attached} }

# What the module cannot see, and what it drops and counts.
my %harmless = map { $_ => 1 } qw(gen utf8 twice start);

for my $kind (qw(tail_back tail_far tail_odd head_far length huge pad zero
                 gen slot type flags choice channel short text utf8 tokens
                 logprobs twice start finish)) {
    my $n = attached();
    my $script = "tokens=6 delay_ms=20 at=2 bad=$kind";
    my $c = $moe->stream(chat($script));
    my $r = $c->collect;
    ok $r->{done}, "$kind: the stream ends with [DONE]";
    ok !$c->{truncated}, "$kind: and is whole";
    like $r->{content}, qr/^w0 w1 /, "$kind: what came before is there";
    ok $r->{error} || $r->{finish}, "$kind: it says how it ended";
    if ($r->{error}) {
        is $r->{error}{code}, 'engine_unavailable', "$kind: its code";
        $moe->until('another attach', sub { (attached() // 0) > $n });
    } else {
        ok $harmless{$kind}, "$kind: is harmless";
    }
    $moe->wait_ready;
}
is(($moe->workers)[0], $worker, 'the worker lives');

for my $n (1, 7, 100, 5000) {
    my $r = $moe->stream(chat("tokens=9 delay_ms=20 at=1 garbage=$n"))->collect;
    ok $r->{done}, "$n cells of garbage: [DONE]";
    $moe->wait_ready;
}

my $r = $moe->stream(chat('tokens=100000 at=1 flood',
                          max_tokens => 200000))->collect;
ok $r->{done}, 'an engine that heeds no credit: [DONE]';
$moe->wait_ready;

$r = $moe->stream(chat('tokens=20 delay_ms=50 at=2 mute'))->collect;
is $r->{n_events}, 20, 'an engine that rings no bell is still heard';

my $n = attached();
$r = $moe->stream(chat('tokens=9 delay_ms=50 at=2 freeze_ms=6000'))->collect;
is $r->{error}{code}, 'engine_unavailable', 'an engine whose heart stops';
$moe->until('another attach', sub { (attached() // 0) > $n }, 30);
$moe->wait_ready;

for ('die', 'close') {
    $r = $moe->stream(chat("tokens=9 delay_ms=20 at=3 $_"))->collect;
    is $r->{error}{code}, 'engine_unavailable', "$_: its error";
    like $r->{content}, qr/^w0 w1 w2 /, "$_: what came before";
    if ($_ eq 'die') {
        $moe->until('end of the engine', sub {
            defined $moe->ended($moe->{engine}) });
        unlink "$moe->{dir}/engine.sock";
        $moe->restart_engine;
    }
    $moe->wait_ready;
}
$r = $moe->post((chat('tokens=2'))[0], { messages => [
    { role => 'user', content => 'mock tokens=2' }] });
is $r->{status}, 200, 'and all is well';
is(($moe->workers)[0], $worker, 'the worker has lived through all of it');
$moe->allow_log(qr/broke the contract/, qr/the engine is gone/);
$moe->stop;


# -- handshakes ------------------------------------------------------------

for my $mode (qw(refuse silent close short long no_fd surplus magic major name
                 generation size unsealed pipe crc)) {
    $moe = Moe->new;
    $moe->mock('--attach', "$mode:2", '--quiet');
    $moe->nginx(engine => 'connect_timeout 300ms;');
    $moe->wait_ready;
    my ($worker) = $moe->workers;
    is $moe->stream(chat('tokens=2'))->collect->{content}, 'w0 w1 ',
       "attach $mode: the third time it works";
    my @lines = $moe->log =~ /(engine "main" at .*)/g;
    is scalar(@lines), 1, "attach $mode: one line in the log"
        or diag join "\n", @lines;
    is(($moe->workers)[0], $worker, "attach $mode: the worker lives");
    $moe->stop;
}

done_testing;
