package Moe::Process;

# Moe/Process.pm - what Moe.pm needs of processes and files: start a program,
# wait for its end or for anything else, look at what it holds.  An object has
# {dir}, where output goes, and {env}, what programs get.
# It must not know which programs these are.

use strict;
use warnings;

use POSIX ();
use Test::More ();
use Time::HiRes ();

my $owner = $$;

# A daemon that loses its parent comes to us and not to init, so that an
# upgraded NGINX is still ours to wait for: prctl(PR_SET_CHILD_SUBREAPER).
syscall(157, 36, 1, 0, 0, 0) if $^O eq 'linux';

# A test that is interrupted stops what it has started.
$SIG{INT} = $SIG{TERM} = $SIG{HUP} = sub { exit 1 };
$SIG{PIPE} = 'IGNORE';


# Starts a program with stdout and stderr in DIR/$log; returns its pid.
sub spawn {
    my ($self, $log, @cmd) = @_;
    my $pid = fork // die "fork: $!";
    if (!$pid) {
        # A shell in the background has it ignored, for good.
        $SIG{INT} = 'DEFAULT';
        open STDIN, '<', '/dev/null';
        open STDOUT, '>>', "$self->{dir}/$log" or POSIX::_exit(126);
        open STDERR, '>&', \*STDOUT;
        @ENV{keys %{ $self->{env} }} = values %{ $self->{env} };
        { no warnings 'exec'; exec { $cmd[0] } @cmd; }
        POSIX::_exit(127);
    }
    return $pid;
}

# Wait status of a child, or undef while it runs.
sub ended {
    my ($self, $pid) = @_;
    while ((my $p = waitpid -1, POSIX::WNOHANG) > 0) {
        $self->{exits}{$p} = $?;
    }
    return $self->{exits}{$pid};
}

# Calls the sub until it is true and returns that; dies after a while.
sub until {
    my ($self, $what, $sub, $seconds) = @_;
    my $end = Time::HiRes::time() + ($seconds // 20);
    my $r;
    until ($r = $sub->()) {
        die "$what: not within time\n" . $self->tails
            if Time::HiRes::time() > $end;
        Time::HiRes::sleep(0.01);
    }
    return $r;
}

sub await_exit {
    my ($self, $what, $pid, $seconds) = @_;
    $self->until("exit of $what", sub { defined $self->ended($pid) }, $seconds);
    return $self->{exits}{$pid};
}

sub children {
    my $pid = shift;
    return split ' ', slurp("/proc/$pid/task/$pid/children");
}

# Does it run?  What has ended may stay until somebody asks how: not ours to.
sub alive {
    my $pid = shift;
    return slurp("/proc/$pid/stat") =~ /^\d+ \(.*\) [^ZX]/s;
}

sub slurp {
    my $path = shift;
    open my $f, '<', $path or return '';
    local $/;
    return <$f> // '';
}

sub write {
    my ($self, $name, $text) = @_;
    open my $f, '>', "$self->{dir}/$name" or die "$self->{dir}/$name: $!";
    print $f $text;
    close $f or die "$name: $!";
    return "$self->{dir}/$name";
}

# Descriptors that a process has open.
sub fds {
    my ($self, $pid) = @_;
    opendir my $d, "/proc/$pid/fd" or return -1;
    return scalar grep { !/^\./ } readdir $d;
}

# Resident bytes of a process.
sub rss {
    my ($self, $pid) = @_;
    return slurp("/proc/$pid/status") =~ /VmRSS:\s+(\d+)/ ? $1 * 1024 : 0;
}

# Whatever way the test ends, nothing that it has started stays behind: all of
# it is our children, or became so when its parents died.
END {
    if ($$ == $owner) {
        my $status = $?;
        for (1 .. 100) {
            my @left = children($$) or last;
            kill 'KILL', @left;
            1 while waitpid(-1, POSIX::WNOHANG) > 0;
            Time::HiRes::sleep(0.01);
        }
        $? = $status;
    }
}

1;
