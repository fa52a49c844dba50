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

sub passes {
    my ($test, $what) = @_;
    my $out = `$test 2>&1`;
    is($?, 0, "$what, " . $test =~ s{.*/}{}r)
        or diag(grep { !/^ok/ } map { "$_\n" } split /\n/, $out);
}

for ([1, 1], [2, 1], [2, 2]) {
    my ($order, $seed) = @$_;
    local $ENV{MOE_EMU_ORDER} = $order;
    local $ENV{MOE_EMU_SEED} = $seed;
    passes($_, "every op in order of turns $order, seed $seed") for @tests;
}

# What does not have Hopper's warpgroups goes other ways, or may not use them.
for my $kind (qw(unpaired mma deterministic)) {
    local $ENV{MOE_TEST_BACKEND} = "cuda:$kind";
    passes($_, "every op, $kind") for @tests;
}

# With a device or without, the choice is said, and is the operator's.
my $engine = ($ENV{BUILD} // 'build') . '/moe-engine';
my $out = `$engine --model t/data/model/v3 --socket /nonexistent/s --backend gpu 2>&1`;
like($out, qr/--backend: expected cpu\|cuda\|auto, got "gpu"/,
     'a backend that there is not');

done_testing();
