# A compromised worker against live engines: t/tools/evil_worker.c attacks, and
# after each attack an honest worker must get its answer.  The mock engine is
# attacked as far as the rings go; the real one in all ways.

use strict;
use warnings;

use Cwd ();
use File::Temp ();
use POSIX ();
use Test::More;
use Time::HiRes ();

my $root  = Cwd::abs_path(__FILE__ =~ s{[^/]*$}{..}r);
my $build = Cwd::abs_path($ENV{BUILD} // "$root/build") // "$root/build";
my $evil  = "$build/t/tools/evil_worker";
my $mock  = "$build/t/tools/mock_engine";
my $real  = "$build/moe-engine";
my $model = $ENV{MODEL} ? Cwd::abs_path($ENV{MODEL}) : "$root/conf/demo/model";
my $dir   = File::Temp::tempdir('moe-XXXXXX', TMPDIR => 1, CLEANUP => 1);
my $owner = $$;
my $engine;

END { kill 'KILL', $engine if $engine && $$ == $owner }

plan skip_all => "$evil is not built" unless -x $evil;

sub start {
    my ($name, @cmd) = @_;
    my $socket = "$dir/$name.sock";
    $engine = fork // die "fork: $!";
    if (!$engine) {
        open STDOUT, '>', "$dir/$name.log" or POSIX::_exit(126);
        open STDERR, '>&', \*STDOUT;
        { no warnings 'exec'; exec @cmd, '--socket', $socket; }
        POSIX::_exit(127);
    }
    for (1 .. 600) {
        last if -S $socket;
        if (waitpid($engine, POSIX::WNOHANG) == $engine) {
            $engine = undef;
            last;
        }
        Time::HiRes::sleep(0.1);
    }
    return $socket;
}

sub tail {
    my $name = shift;
    open my $log, '<', "$dir/$name.log" or return '';
    my @lines = <$log>;
    return join '', @lines > 30 ? @lines[-30 .. -1] : @lines;
}

# The process that has the worker's descriptors: a child, where there is one.
sub server {
    my ($child) = split ' ', `cat /proc/$engine/task/*/children 2>/dev/null`;
    return $child // $engine;
}

sub attack {
    my ($name, $cmd, @args) = @_;
    my $socket = start($name, @$cmd);
    if (!$engine) {
        fail("$name started");
        diag(tail($name));
        return;
    }
    my $n = 0;
    open my $out, '-|', $evil, '--socket', $socket, '--pid', server(), @args
        or die "$evil: $!";
    while (<$out>) {
        my ($not, $what) = /^(not )?ok \d+ - (.*)/ or next;
        ok(!$not, "$name: $what");
        $n++;
    }
    ok(close $out, "$name: evil_worker ends with 0");
    cmp_ok($n, '>', 10, "$name: attacks were made");
    kill 'TERM', $engine;
    waitpid $engine, 0;
    is($?, 0, "$name ends with 0");
    diag(tail($name)) if $? || !Test::More->builder->is_passing;
    $engine = undef;
}

SKIP: {
    skip "$mock is not built", 1 unless -x $mock;
    attack('mock', [$mock], qw(handshake frame flood));
}

SKIP: {
    skip "$real is not built", 1 unless -x $real;
    skip "no model in $model", 1 unless -e "$model/config.json";
    attack('engine', [$real, '--model', $model], '--prompt', 'Hello');
}

done_testing();
