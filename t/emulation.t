# The kernels of cuda/ in the emulation (t/emu), with threads and blocks taking
# their turns backwards and shuffled: a barrier that is missing shows in one of
# the orders.  t/cuda/ops.c itself runs them forwards, on a Hopper.

use strict;
use warnings;

use Test::More;

my $ops = ($ENV{BUILD} // 'build') . '/t/cuda/ops.emu';

plan skip_all => 'not built: ThreadSanitizer takes fibres for threads'
    unless -x $ops;

for my $order (1, 2) {
    local $ENV{MOE_EMU_ORDER} = $order;
    my $out = `$ops 2>&1`;
    is($?, 0, "every op in order of turns $order")
        or diag(grep { !/^ok/ } map { "$_\n" } split /\n/, $out);
}

# What does not have Hopper's warpgroups goes other ways.
{
    local $ENV{MOE_TEST_BACKEND} = 'cuda:mma';
    my $out = `$ops 2>&1`;
    is($?, 0, 'every op without warpgroups')
        or diag(grep { !/^ok/ } map { "$_\n" } split /\n/, $out);
}

# With a device or without, the choice is said, and is the operator's.
my $engine = ($ENV{BUILD} // 'build') . '/moe-engine';
my $out = `$engine --model t/data/model/v3 --socket /nonexistent/s --backend gpu 2>&1`;
like($out, qr/--backend: expected cpu\|cuda\|auto, got "gpu"/,
     'a backend that there is not');

done_testing();
