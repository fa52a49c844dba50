# The engine's processes: options, socket, restart, draining, systemd.

use strict;
use warnings;

use lib 't/lib';
use Test::More;
use IO::Socket::UNIX;
use Socket qw(SOCK_SEQPACKET SOCK_DGRAM SOMAXCONN);
use Time::HiRes ();

use Moe::Engine;
use Moe::Process;

my $bin = "$Moe::Engine::build/moe-engine";
my $e = Moe::Engine->new(start => 0, args => ['--max-seqs', 4, '--drain', 5]);
my @model = ('--model', $e->{model}, '--random-weights', 1, '--threads', 1);


# -- options ---------------------------------------------------------------

sub run_engine {
    my ($text, $status) = (scalar `@_ 2>&1`, $? >> 8);
    return "$status $text";
}

like run_engine($bin, '--help'), qr/^0 Usage: .*--model DIR.*--drain SEC/s,
     'help';
like run_engine($bin, '--version'), qr/^0 moe-engine \d/, 'version';

my @bad = (
    [qr/--model DIR is required/],
    [qr/--socket PATH is required/, @model],
    [qr/unknown option "--modell"/, '--modell', 'x'],
    [qr/unknown option "-h"/, '-h'],
    [qr/--threads: expected a number 0 \.\. 1024, got "x"/, '--threads', 'x'],
    [qr/--threads: expected a number 0 \.\. 1024, got "2k"/, '--threads=2k'],
    [qr/--max-seqs: expected a number 1 \.\. 1024, got "0"/, '--max-seqs', 0],
    [qr/--kv-bytes: expected a size such as 512m.*got "12q"/, '--kv-bytes',
     '12q'],
    [qr/--socket-mode: expected an octal number .*got "999"/, '--socket-mode',
     999],
    [qr/--quant: expected f32\|bf16\|int8\|int4\|fp8, got "q4"/, '--quant', 'q4'],
    [qr/--model: expected DIR, got nothing/, '--model'],
    [qr/--max-batch-tokens: expected at least --max-seqs, 64, got 8/, @model,
     '--max-batch-tokens', 8],
    [qr/--help takes no value/, '--help=1'],
);
for (@bad) {
    my ($re, @args) = @$_;
    like run_engine($bin, @args), qr/^1 .*$re/, "refused: @args[0 .. $#args]";
}

like run_engine($bin, '--model', '/nonexistent', '--socket',
                "$e->{dir}/none.sock"),
     qr{^1 .*\[error\] \d+: /nonexistent.*$}s,
     'a model that is not there ends the engine at once';
ok !-e "$e->{dir}/none.sock", 'and leaves no socket';


# -- the socket ------------------------------------------------------------

open my $f, '>', $e->{socket} or die;
close $f;
like run_engine($bin, @model, '--socket', $e->{socket}),
     qr/^1 .*exists and is not a socket/s, 'a file in the way is not touched';
like run_engine($bin, @model, '--replace', '--socket', $e->{socket}),
     qr/^1 .*exists and is not a socket/s, 'nor is it replaced';
ok -f $e->{socket}, 'it is still there';
is "@{[glob qq($e->{socket}.*)]}", '', 'and nothing beside it';
unlink $e->{socket};

IO::Socket::UNIX->new(Type => SOCK_SEQPACKET, Local => $e->{socket},
                      Listen => 1)->close;
ok -S $e->{socket}, 'a socket that nobody listens on';
$e->start('--socket-mode', '0600');
is sprintf('%o', (stat $e->{socket})[2] & 0777), '600', 'is taken over';

like run_engine($bin, @model, '--socket', $e->{socket}),
     qr/^1 .*somebody else listens there/s, 'one that is alive is not';


# -- sandbox ---------------------------------------------------------------

SKIP: {
    skip 'a sanitizer needs what the sandbox refuses', 1
        if $e->log =~ /sandbox: none in a sanitizer/;
    my @wrong = grep {
        my $status = Moe::Process::slurp("$_/status");
        $status !~ /^NoNewPrivs:\s*1$/m || $status !~ /^Seccomp:\s*2$/m
    } glob '/proc/' . $e->child . '/task/*';
    is "@wrong", '', 'every thread is locked in';
}


# -- restart ---------------------------------------------------------------

my $child = $e->child;
my ($h) = $e->client_start('--chat', 'x', '--max-tokens', 1000, '--flags', 4,
                           '--window', 64, '--stall-after', 2);
my $line = <$h>;
kill 'KILL', $child;
my @l = <$h>;
is $l[-1], "lost\n", 'a worker sees the engine go';
$e->until('restart', sub { () = $e->log =~ /: ready$/mg; 2 == @{[
    $e->log =~ /: ready$/mg ]} });
isnt $e->child, $child, 'another child serves';
@l = $e->client('--chat', 'x', '--max-tokens', 3, '--flags', 4);
like $l[-1], qr/^done /, 'on the same socket';

# Its parent's end is its own.
$child = $e->child;
kill 'KILL', $e->{pid};
waitpid delete $e->{pid}, 0;
$e->until('end of the child', sub { !Moe::Process::alive($child) });
pass 'the child does not outlive its parent';


# -- draining --------------------------------------------------------------

# The log starts anew.
sub restart { unlink "$e->{dir}/log"; $e->start(@_) }

restart();
my ($run) = $e->client_start('--chat', 'x', '--max-tokens', 900, '--flags', 4);
$line = <$run>;
my ($late, $pid) = $e->client_start('--chat', 'x', '--max-tokens', 900,
                                    '--flags', 4, '--stall-after', 1,
                                    '--window', 64, '--cancel-after', -1);
$line = <$late>;
kill 'TERM', $e->{pid};
$e->until('draining', sub { $e->log =~ /shutting down: / });
@l = <$run>;
like $l[-1], qr/^done .* output=900 /, 'what runs comes to its end';
my @refused = $e->client('--chat', 'x');
like $refused[-1], qr/refused by the peer: the engine is shutting down/,
     'nobody new is let in';
my $start = Time::HiRes::time();
@l = <$late>;
like $l[-1], qr/^error code=4 retry=1 /, 'what stalls gets an end in time';
is $e->wait_exit, 0, 'then the engine exits';
ok !-e $e->{socket}, 'and its socket is gone';
like $e->log, qr/: 2 requests: 1 done, 1 errors, 0 cancelled, 0 lost; 0 open/,
     'with nothing left over';

restart();
my ($held) = $e->client_start('--chat', 'x', '--max-tokens', 900, '--flags', 4,
                              '--stall-after', 1, '--window', 64);
$line = <$held>;
kill 'INT', $e->{pid};
$e->until('draining', sub { $e->log =~ /shutting down: 1 / });
kill 'INT', $e->{pid};
@l = <$held>;
like $l[-1], qr/^error code=4 /, 'a second signal ends it at once';
is $e->wait_exit, 0, 'with status 0';


# -- systemd ---------------------------------------------------------------

# Socket activation and readiness, as systemd does them.
my $listener = IO::Socket::UNIX->new(Type => SOCK_SEQPACKET, Listen => 8,
                                     Local => "$e->{dir}/systemd.sock");
my $notify = IO::Socket::UNIX->new(Type => SOCK_DGRAM,
                                   Local => "$e->{dir}/notify.sock");
$pid = fork // die;
if (!$pid) {
    require POSIX;
    POSIX::dup2(fileno $listener, 3);
    open STDERR, '>', "$e->{dir}/log2";
    $ENV{NOTIFY_SOCKET} = "$e->{dir}/notify.sock";
    # The shell's pid is that of the engine which replaces it.
    { no warnings 'exec';
      exec 'sh', '-c', 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@"', $bin,
           @model; }
    POSIX::_exit(127);
}
my $said = '';
{
    local $SIG{ALRM} = sub { die "no READY\n" };
    alarm 60;
    $notify->recv($said, 100);
    alarm 0;
}
is $said, 'READY=1', 'systemd hears that it is ready';
@l = do { local $e->{socket} = "$e->{dir}/systemd.sock";
          $e->client('--chat', 'x', '--max-tokens', 3, '--flags', 4) };
like $l[-1], qr/^done /, 'on a socket that was passed';
kill 'TERM', $pid;
waitpid $pid, 0;
is $?, 0, 'it leaves';
ok -S "$e->{dir}/systemd.sock", 'and the socket stays';

done_testing;
