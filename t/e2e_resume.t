# Streams survive their engine (D5, D6): killed in the middle, again and again,
# with the demo model.  Each answer, greedy or seeded, in one choice or in two,
# is to the byte what an undisturbed engine says.

use strict;
use warnings;

use JSON::PP ();
use Test::More;
use Time::HiRes ();

use Moe;

plan skip_all => 'the engine or the demo model is not built'
    unless Moe->can_engine;

my ($n_streams, $n_kills) = $ENV{LONG} ? (200, 20) : (12, 3);
my $true = JSON::PP::true;
my $moe = Moe->new;
my @questions = ('What is 347 + 285?', 'What is a whale?', 'What is 12 * 8?',
                 'What is a river?');

# Every kind of request; the same ones each time.
sub ask {
    my $i = shift;
    my %ask = (stream => $true, max_tokens => 400 + $i % 7,
               messages => [{ role => 'user',
                              content => $questions[$i % @questions] }]);
    $ask{ignore_eos} = $true if $i % 3;
    @ask{'temperature', 'seed'} = $i % 2 ? (0, undef) : (1.2, 1000 + $i);
    $ask{n} = 2 if $i % 5 == 4;
    $ask{frequency_penalty} = 0.5 if $i % 4 == 1;
    delete @ask{grep { !defined $ask{$_} } keys %ask};
    return $moe->client(timeout => 300)
               ->request('POST', '/v1/chat/completions', \%ask);
}

# All that a client saw of its stream, but for its name and time.
sub told {
    my $c = shift->head;
    my (@text, @rest);
    while (my $e = $c->event) {
        push @rest, 'done' if ($e->{data} // '') eq '[DONE]';
        my $j = $e->{json} or next;
        push @rest, "error $j->{error}{code}" if $j->{error};
        for my $choice (@{ $j->{choices} // [] }) {
            my $i = $choice->{index};
            $text[$i] .= $choice->{delta}{reasoning_content} // '';
            $text[$i] .= $choice->{delta}{content} // '';
            $text[$i] .= "|$choice->{finish_reason}"
                if defined $choice->{finish_reason};
        }
    }
    return join "\n", @text, @rest;
}

$moe->engine(args => ['--max-seqs', 16]);
$moe->nginx(engine => 'resume_timeout 120s; queue 1000; queue_timeout 600s;');
$moe->wait_ready;
my @calm = map { told(ask($_)) } 0 .. 11;
is scalar(grep { /\|(?:stop|length)/ && !/error/ } @calm), 12,
   'undisturbed answers';

my @streams = map { ask($_ % 12) } 0 .. $n_streams - 1;
for (1 .. $n_kills) {
    my $at = $moe->health->{output_tokens};
    $moe->until('some tokens', sub {
        $moe->health->{output_tokens} > $at + 20 * (1 + rand 20) });
    $moe->kill_engine;
    $moe->restart_engine;
    $moe->wait_ready;
}

my @wrong;
for my $i (0 .. $#streams) {
    my $told = told($streams[$i]);
    push @wrong, "stream $i: expected <$calm[$i % 12]>, got <$told>"
        if $told ne $calm[$i % 12];
}
is_deeply \@wrong, [],
          "$n_streams streams are the same after $n_kills dead engines";
cmp_ok $moe->health->{worker}{resumed}, '>=', $n_streams / 2,
       'and most of them have had more than one';

$moe->allow_log(qr/the engine is gone/);
$moe->done;
