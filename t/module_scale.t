# Many streams through what an operator does to NGINX: reloads, one after the
# other, binary upgrades, the death of one of two workers.  No stream is cut, no
# connection refused, nothing alarming is in the log.  LONG=1: 500 streams, 50
# reloads, 5 upgrades.

use strict;
use warnings;

use JSON::PP ();
use Test::More;
use Time::HiRes ();

use Moe;

my ($n_streams, $n_reloads, $n_upgrades) = $ENV{LONG} ? (500, 50, 5)
                                                      : (60, 8, 1);
my $true = JSON::PP::true;
my $moe = Moe->new;

sub open_streams {
    my ($n, $script) = @_;
    my @s = map { $moe->client(timeout => 120)->request('POST',
        '/v1/chat/completions', { stream => $true, messages =>
            [{ role => 'user', content => "mock $script" }] }) } 1 .. $n;
    return map { $_->head } @s;
}

sub asked {
    return $moe->post('/v1/completions', { prompt => 'mock tokens=1' })
               ->{status};
}

sub finish {
    my ($name, $n_tok, @s) = @_;
    my $whole = join '', map { "w$_ " } 0 .. $n_tok - 1;
    my $ok = 0;
    for my $c (@s) {
        my $r = eval { $c->collect } // {};
        $ok++ if $r->{done} && !$r->{error} && $r->{content} eq $whole;
        $c->close;
    }
    is $ok, scalar @s, $name;
}

$moe->mock('--quiet');
$moe->nginx(workers => 2, engine => 'streams 2048;');
$moe->wait_ready;


# -- reloads and upgrades --------------------------------------------------

my $n_tok = $ENV{LONG} ? 600 : 120;
my @s = open_streams($n_streams, "tokens=$n_tok delay_ms=50");
my $refused = 0;
for (1 .. $n_reloads) {
    $moe->reload;
    $refused++ if asked() != 200;
}
finish("$n_streams streams, $n_reloads reloads: all whole", $n_tok, @s);

# NGINX makes one upgrade at a time: the old master has to be gone.
for (1 .. $n_upgrades) {
    @s = open_streams($n_streams, 'tokens=60 delay_ms=50');
    my $old = $moe->upgrade;
    $refused++ if asked() != 200;
    finish("$n_streams streams, an upgrade: all whole", 60, @s);
    $moe->await_exit('the old master', $old);
}
is $refused, 0, 'every request in between was answered';


# -- the death of a worker -------------------------------------------------

# Which worker a stream is in is told by how it ends.
@s = open_streams(40, 'tokens=60 delay_ms=30');
my ($victim) = $moe->workers;
kill 'KILL', $victim;
my ($whole, $cut) = (0, 0);
for my $c (@s) {
    my $r = eval { $c->collect };
    $r && $r->{done} && $r->{n_events} == 60 ? $whole++ : $cut++;
    $c->close;
}
is $whole + $cut, 40, "of 40 streams $whole were in the other worker: whole";
cmp_ok $whole, '>', 0, 'the other worker had some';
$moe->until('two workers', sub { my @w = $moe->workers; @w == 2 });
$moe->wait_ready;
finish('the new worker serves', 5, open_streams(10, 'tokens=5'));

$moe->allow_log(qr/\[alert\].*worker process $victim exited on signal 9/);
$moe->done;
