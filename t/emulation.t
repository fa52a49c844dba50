# The kernels of cuda/ in the emulation (t/emu), with threads and blocks taking
# their turns backwards and shuffled: a barrier that is missing shows in one of
# the orders.  t/cuda/*.c themselves run them forwards, on a Hopper.

use strict;
use warnings;

use Test::More;

my @tests = map { ($ENV{BUILD} // 'build') . "/t/cuda/$_.emu" }
            qw(ops step attention);

plan skip_all => 'not built: ThreadSanitizer takes fibres for threads'
    unless -x $tests[0];

# Runs of as many as there are cores at a time: what to set, and for what.
my @runs;

for my $test (@tests) {
    for ([1, 1], [2, 1], [2, 2]) {
        my ($order, $seed) = @$_;
        push @runs, [$test, "MOE_EMU_ORDER=$order MOE_EMU_SEED=$seed",
                     "every op in order of turns $order, seed $seed"];
    }

    # What does not have Hopper's warpgroups goes other ways, or may not use
    # them.
    push @runs, map { [$test, "MOE_TEST_BACKEND=cuda:$_", "every op, $_"] }
                qw(unpaired mma deterministic);
}

chomp(my $n_cores = `nproc`);

while (my @now = splice @runs, 0, $n_cores) {
    my @out = map {
        open my $f, '-|', "$_->[1] $_->[0] 2>&1" or die "$_->[0]: $!";
        $f;
    } @now;

    for (@now) {
        my ($test, undef, $what) = @$_;
        my $f = shift @out;
        my @said = <$f>;

        close $f;
        is($?, 0, "$what, " . $test =~ s{.*/}{}r)
            or diag(grep { !/^ok/ } @said);
    }
}

# With a device or without, the choice is said, and is the operator's.
my $engine = ($ENV{BUILD} // 'build') . '/moe-engine';
my $out = `$engine --model t/data/model/v3 --socket /nonexistent/s --backend gpu 2>&1`;
like($out, qr/--backend: expected cpu\|cuda\|auto, got "gpu"/,
     'a backend that there is not');

done_testing();
