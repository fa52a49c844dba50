# What a token costs the worker in system calls: one to write it, and a share in
# the one that waits for the next step.  A count and no time: a slower machine
# wakes its worker less often, never more.

use strict;
use warnings;

use Test::More;

use Moe;

my $moe = Moe->new;
$moe->mock('--quiet');
$moe->nginx(server => 'location = /metrics { moe_status prometheus; }');
$moe->wait_ready;
my ($worker) = $moe->workers;
my $strace = Moe::find('strace');

# So many streams of so many tokens, all of one step at once.
sub run {
    my ($streams, $tokens) = @_;
    my $body = qq({"stream":true,"messages":[{"role":"user","content":)
             . qq("mock tokens=$tokens delay_ms=10 step_ms=10"}]});
    system("$Moe::build/t/tools/load >$moe->{dir}/load.out " . $moe->port
           . " /v1/chat/completions $streams $streams '$body'") == 0
        or die "load failed\n";
}

# Counted by the kernel and by the worker itself.
sub counts {
    my ($writes) = Moe::slurp("/proc/$worker/io") =~ /^syscw: (\d+)$/m;
    my $page = $moe->get('/metrics')->{body};
    my ($looks) = $page =~ /^moe_wakeups_total\{[^}]*\} (\d+)$/m;
    return (writes => $writes, looks => $looks);
}

sub counted {
    my %before = counts();
    run(@_);
    my %after = counts();
    return map { $_ => $after{$_} - $before{$_} } keys %after;
}

# All, in a run under strace.
sub traced {
    my $file = "$moe->{dir}/strace";
    unlink $file;
    my $pid = $moe->spawn('strace.out', $strace, '-c', '-p', $worker,
                          '-o', $file);
    eval {
        $moe->until('strace', sub {
            die 'gone' if defined $moe->ended($pid);
            Moe::slurp("$moe->{dir}/strace.out") =~ /attached/;
        });
    } or return;
    run(@_);
    sleep 1;                    # all connections are closed
    kill 'INT', $pid;
    $moe->await_exit('strace', $pid);
    my ($calls) = Moe::slurp($file)
        =~ /^100\.00\s+\S+\s+(?:\d+\s+)?(\d+)\s/m or die "no total\n";
    return $calls;
}

# Of a token: what more of them cost, since streams begin and end as well.
for ([64, 1.05], [8, 1.2]) {
    my ($streams, $bound) = @$_;
    my ($few, $many) = (50, 250);
    my $n = $streams * ($many - $few);
    my %less = counted($streams, $few);
    my %more = counted($streams, $many);
    my %of = map { $_ => ($more{$_} - $less{$_}) / $n } keys %more;
    cmp_ok $of{writes}, '<=', 1.01, "$streams streams: writes of a token";
    cmp_ok $of{writes} + $of{looks}, '<=', $bound,
           "$streams streams: with looks into the ring";

    SKIP: {
        skip 'no strace', 1 unless $strace;
        my $less = traced($streams, $few) // skip 'strace cannot attach', 1;
        cmp_ok +(traced($streams, $many) - $less) / $n, '<=', $bound,
               "$streams streams: system calls of a token";
    }
}

$moe->done;
