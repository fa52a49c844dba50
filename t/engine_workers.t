# Many workers, of which some die, stop, stall, cancel or attack: none of it is
# felt by the others, and nothing of them stays behind.

use strict;
use warnings;

use lib 't/lib';
use Test::More;
use Time::HiRes ();

use Moe::Engine;

my $e = Moe::Engine->new(args => ['--max-seqs', 32, '--max-queue', 300,
                                  '--threads', 2]);
my @long = ('--chat', 'a long one', '--max-tokens', 900, '--flags', 4);

# The engine still has to see that the client of this has left: at most that
# one too many, where a leak of what follows would be dozens.
$e->until_idle;
my $fds = $e->fds;

sub finish { my ($h) = @_; my @l = <$h>; close $h; chomp @l; return @l }


# -- cancel ----------------------------------------------------------------

my @l = $e->client(@long, '--cancel-after', 0);
like $l[-1], qr/^cancelled prompt=/, 'cancel before anything came';
# The bias makes every token a "~", and so an event of one cell.
@l = $e->client(@long, '--cancel-after', 5, '--window', 64,
                '--bias', '129:100');
is scalar(grep { /^(?:done|error|cancelled)/ } @l), 1, 'one terminal event';
my ($said) = $l[-1] =~ /^cancelled .* output=(\d+)/;
cmp_ok $said, '<=', 64 + 5 + 1, 'one token at most beyond the window';

# A prompt that is being read is left between two chunks; its answer would be
# a long one, so that it is not over before a client that had to wait cancels.
@l = $e->client('--chat', 'p' x 1000, @long[2 .. $#long],
                '--cancel-after', 1);
like $l[-1], qr/^cancelled /, 'cancel of a prompt';


# -- credit ----------------------------------------------------------------

# Who gives no credit stalls alone, and can still be cancelled.
my ($stalled) = $e->client_start(@long, '--window', 64, '--stall-after', 3);
my $first = <$stalled>;
like $first, qr/^start /, 'the stalled one has started';
$e->until('a stall', sub { my %s = $e->status; $s{running} == 1 });
@l = $e->client('--chat', 'q', '--max-tokens', 300, '--flags', 4);
like $l[-1], qr/^done /, 'others go on beside a stalled one';
my %s = $e->status;
is $s{running}, 1, 'which is still there';
cmp_ok $s{used}, '>', 0, 'with its pages';

@l = $e->client(@long, '--window', 64, '--stall-after', 3, '--cancel-after', 40);
like $l[-1], qr/^cancelled /, 'a stalled one can be cancelled';


# -- death -----------------------------------------------------------------

close_now($stalled);
sub close_now {             # kill -9, while its job is open
    my ($h) = @_;
    my ($pid) = grep { `ps -o args= -p $_` =~ /--stall-after 3$/m }
                split ' ', `ps -o pid= --ppid $$`;
    kill 'KILL', $pid;
    close $h;
}
$e->until_idle;
pass 'the job of a killed worker is gone, and its pages';

srand 20;
for my $round (1 .. 12) {
    my @run = map {
        my ($h, $pid) = $e->client_start('--load', 200, '--slots', 20,
                                         '--cancel', 20, '--chat', "w$_",
                                         '--seed', 100 * $round + $_,
                                         '--max-tokens', 40, '--flags', 4);
        [$h, $pid];
    } 1 .. 4;
    Time::HiRes::sleep(rand 0.15);
    kill 'KILL', $_->[1] for @run[0 .. 2];
    close $_->[0] for @run[0 .. 2];
    my @left = finish($run[3][0]);
    my %n = $left[-1] =~ /(\w+)=(\d+)/g;
    is $n{done} + $n{cancelled} + $n{error}, 200,
       "round $round: the one that lives gets its 200 ends"
        or diag "@left";
}

%s = $e->until_idle;
is $s{used}, 0, 'all pages are free';
$e->until('descriptors', sub { $e->fds <= $fds });
pass 'no descriptor is left over';


# -- many workers ----------------------------------------------------------

# Old and new ones of a reload: 70 channels, each with two streams.
my @many = map {
    scalar $e->client_start('--load', 4, '--slots', 2, '--chat', "m$_",
                            '--max-tokens', 30, '--flags', 4)
} 1 .. 70;
my $ok = grep { (finish($_))[-1] =~ /^done=4 error=0 cancelled=0$/ } @many;
is $ok, 70, '70 workers at once';

# One that is stopped does not hold up the others.
my ($h, $stopped) = $e->client_start(@long);
$first = <$h>;
kill 'STOP', $stopped;
@l = $e->client('--load', 50, '--slots', 10, '--chat', 'go', '--max-tokens', 30,
                '--flags', 4);
is $l[-1], 'done=50 error=0 cancelled=0', 'beside a stopped worker';
kill 'CONT', $stopped;
@l = finish($h);
like $l[-1], qr/^done /, 'which goes on where it was';

# A flood of connections that say nothing.
require IO::Socket::UNIX;
my @mute = map {
    IO::Socket::UNIX->new(Type => Socket::SOCK_SEQPACKET(),
                          Peer => $e->{socket})
} 1 .. 100;
is scalar(grep { defined } @mute), 100, '100 mute connections';
@l = $e->client('--chat', 'q', '--max-tokens', 3, '--flags', 4);
like $l[-1], qr/^done /, 'do not keep a worker out';
@mute = ();
$e->until('descriptors', sub { $e->fds <= $fds });


# -- idle ------------------------------------------------------------------

# Clock ticks of CPU in a second without work; a spinning loop has 100.
sub ticks {
    open my $f, '<', '/proc/' . $e->child . '/stat' or die;
    my @f = split ' ', <$f> =~ s/^.*\)//r;
    return $f[11] + $f[12];
}
my ($held) = $e->client_start(@long, '--window', 64, '--stall-after', 1);
$first = <$held>;
Time::HiRes::sleep(0.3);
my $before = ticks();
Time::HiRes::sleep(1);
cmp_ok ticks() - $before, '<=', 5, 'no CPU beside a stalled stream';
close_now2($held);
sub close_now2 {
    my ($h) = @_;
    my ($pid) = grep { `ps -o args= -p $_` =~ /--stall-after 1$/m }
                split ' ', `ps -o pid= --ppid $$`;
    kill 'KILL', $pid;
    close $h;
}
$e->until_idle;
# Nanoseconds of all threads: a second of one that spins has a milliard.
sub nanoseconds {
    my $n = 0;
    for my $task (glob '/proc/' . $e->child . '/task/*/schedstat') {
        open my $f, '<', $task or next;
        $n += (split ' ', <$f>)[0];
    }
    return $n;
}
$before = ticks();
my $before_ns = nanoseconds();
Time::HiRes::sleep(1);
cmp_ok ticks() - $before, '<=', 1, 'no tick of CPU at rest';
cmp_ok nanoseconds() - $before_ns, '<', 3e6, 'nothing but a look at the clock';

$e->stop;


# -- no descriptors --------------------------------------------------------

# prlimit: who comes when there is no descriptor left waits, and is served when
# there is one again; meanwhile the loop does not spin.
SKIP: {
    skip 'no prlimit', 3 if !grep { -x "$_/prlimit" } split /:/, $ENV{PATH};
    $e = Moe::Engine->new;
    system 'prlimit', '--pid', $e->child, '--nofile=3:500';
    my $queued = $e->client_start('--chat', 'q', '--max-tokens', 3, '--flags',
                                  4);
    $e->until('shortage', sub { $e->log =~ /a worker cannot be taken/ });
    $before = ticks();
    Time::HiRes::sleep(0.5);
    cmp_ok ticks() - $before, '<=', 5, 'no CPU while nobody can be taken';
    system 'prlimit', '--pid', $e->child, '--nofile=500:500';
    @l = finish($queued);
    like $l[-1], qr/^done /, 'the waiting one gets its answer';
    @l = $e->client('--chat', 'q', '--max-tokens', 3, '--flags', 4);
    like $l[-1], qr/^done /, 'and later ones as ever';
    $e->stop(allow => [qr/cannot be taken/]);
}

done_testing;
