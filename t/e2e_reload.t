# Reload and binary upgrade with live streams: each goes on in the worker that
# it began in, ends well, and no old process stays behind.

use strict;
use warnings;

use JSON::PP ();
use Test::More;

use Moe;

my ($moe, $mode);

sub live {
    my $ask = { stream => JSON::PP::true, temperature => 0,
                messages => [{ role => 'user', content => $mode eq 'mock'
                    ? 'mock tokens=150 delay_ms=10' : 'What is 347 + 285?' }] };
    # Nothing but the limit ends these.
    @$ask{'max_tokens', 'ignore_eos'} = (600, JSON::PP::true)
        if $mode eq 'model';
    my @s = map { $moe->stream('/v1/chat/completions', $ask) } 1 .. 4;
    $_->event for @s, @s;
    return @s;
}

sub finish {
    my ($what, @streams) = @_;
    my @r = map { $_->collect } @streams;
    is(scalar(grep { $_->{done} && defined $_->{finish} && !$_->{error} } @r),
       scalar @r, "$mode, $what: every stream came to its end");
    my %text = map { $_->{content} . $_->{reasoning} => 1 } @r;
    is(keys %text, 1, "$mode, $what: all with the same text")
        or diag explain \%text;
    $_->close for @streams;
}

for (qw(mock model)) {
    $mode = $_;
    SKIP: {
        skip 'the engine or the demo model is not built', 1
            if $mode eq 'model' && !Moe->can_engine;
        $moe = Moe->new;
        $mode eq 'mock' ? $moe->mock('--quiet') : $moe->engine;
        $moe->nginx(workers => 2)->wait_ready;

        my @workers = $moe->workers;
        my @old = live();
        $moe->reload;
        my @new = live();
        finish('reload, old', @old);
        finish('reload, new', @new);
        ok(eval { $moe->until('end of the old workers',
                              sub { !grep { kill 0, $_ } @workers }) },
           "$mode: the old workers leave") or diag $@;

        $moe->reload for 1 .. 5;
        $moe->wait_ready;
        @old = live();
        my $master = $moe->upgrade;
        @new = live();
        finish('upgrade, old', @old);
        finish('upgrade, new', @new);
        is($moe->await_exit('the old master', $master), 0,
           "$mode: the old master leaves with 0");

        ok(eval { $moe->until('no job', sub { !$moe->busy }) },
           "$mode: no job is left") or diag $@;
        $moe->stop;
    }
}

done_testing();
