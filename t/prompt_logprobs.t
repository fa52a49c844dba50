# What the model thinks of a prompt: prompt_logprobs, and echo with logprobs,
# through NGINX and the real engine.  Every number is checked against the one
# that the model gave the same token when it said it: a prompt that is an answer
# read again must be worth what it was, to the last bit, however it is cut into
# steps, and whatever lies in the cache.
use strict;
use warnings;

use JSON::PP ();
use Test::More;

use Moe;

use constant TOLERANCE => 1e-3;

plan(skip_all => 'moe-engine or its model is missing') unless Moe::can_engine();

my $true = JSON::PP::true;
my (@first, @answers);

# Small steps cut the prompt at other places, and 64 rows at most are scored at
# a time.
for my $batch (512, 64) {
    my $moe = Moe->new;
    $moe->engine(args => ['--max-batch-tokens', $batch, '--max-seqs', 8]);
    $moe->nginx;
    $moe->wait_ready;
    my @got = $batch == 512 ? whole($moe) : again($moe);
    push @answers, \@got;
    refused($moe) if $batch == 512;
    $moe->done_one;
}

golden();
is_deeply($answers[1], $answers[0], 'the same in steps of 64 tokens');
done_testing();

sub Moe::done_one { $_[0]->stop }

sub ask {
    my ($moe, %body) = @_;
    my $r = $moe->post('/v1/completions', { temperature => 0, %body });
    is($r->{status}, 200, 'completions') or diag $r->{body};
    return $r->{json};
}

# 150 ids, then what the model says, with its own logprobs.
sub whole {
    my ($moe) = @_;
    my @prompt = map { 300 + $_ * 37 % 200 } 1 .. 150;
    my $said = ask($moe, prompt => \@prompt, max_tokens => 40, logprobs => 3,
                   ignore_eos => $true, prompt_logprobs => 2);
    my $list = $said->{choices}[0]{prompt_logprobs};
    is(scalar @$list, 150, 'one for each token of the prompt');
    is($list->[0], undef, 'the first has none');
    @first = (@prompt, told_ids($moe, \@prompt));
    is($said->{usage}{prompt_tokens}, 150, 'usage: the prompt');
    is($said->{usage}{completion_tokens}, 40, 'usage: what was said');

    my $both = ask($moe, prompt => \@first, max_tokens => 1,
                   prompt_logprobs => 2);
    my $read = $both->{choices}[0]{prompt_logprobs};
    my $said_of = $said->{choices}[0]{logprobs};
    is(scalar @$read, 190, 'the answer is read again');
    is_deeply([@$read[0 .. 149]], $list, 'the same prompt is worth the same');
    is_deeply([map { $read->[150 + $_]{$first[150 + $_]}{logprob} } 0 .. 39],
              $said_of->{token_logprobs}, 'and each token what it was');
    is_deeply([map { $read->[150 + $_]{$first[150 + $_]}{decoded_token} }
               0 .. 39], $said_of->{tokens}, 'by its text');
    ranks($read, \@first);
    echo($moe, \@first, $read);
    chat($moe);
    return again($moe);
}

# Greedy ids, one request a token: a text does not tell its ids.
sub told_ids {
    my ($moe, $prompt) = @_;
    my @ids;
    for (1 .. 40) {
        my $r = ask($moe, prompt => [@$prompt, @ids], max_tokens => 1,
                    ignore_eos => $true, prompt_logprobs => 0, logprobs => 1);
        my $text = $r->{choices}[0]{logprobs}{tokens}[0];
        push @ids, id_of($moe, $prompt, \@ids, $text);
    }
    return @ids;
}

# The id that comes next: it is the likeliest at its place, once it is read.
sub id_of {
    my ($moe, $prompt, $ids, $text) = @_;
    my $r = ask($moe, prompt => [@$prompt, @$ids, 300], max_tokens => 1,
                prompt_logprobs => 1);
    my $last = $r->{choices}[0]{prompt_logprobs}[-1];
    my ($id) = grep { $last->{$_}{rank} == 1 } keys %$last;
    is($last->{$id}{decoded_token}, $text, 'the likeliest is what is said');
    return $id + 0;
}

sub ranks {
    my ($list, $ids) = @_;
    my $wrong = 0;
    for my $i (1 .. $#$list) {
        my $e = $list->[$i];
        my $own = $e->{ $ids->[$i] };
        my @top = sort { $a->{rank} <=> $b->{rank} } values %$e;
        $wrong++ unless $own && $top[0]{rank} == 1;
        $wrong++ if grep { $top[$_ - 1]{logprob} < $top[$_]{logprob} }
                    1 .. $#top;
        $wrong++ if keys(%$e) != ($own->{rank} > 2 ? 3 : 2);
    }
    is($wrong, 0, 'two beside the token, by rank');
}

sub echo {
    my ($moe, $ids, $read) = @_;
    my $r = ask($moe, prompt => $ids, max_tokens => 2, echo => $true,
                logprobs => 1, ignore_eos => $true);
    my $l = $r->{choices}[0]{logprobs};
    my $text = $r->{choices}[0]{text};
    is($r->{choices}[0]{prompt_logprobs}, undef, 'not asked for, not there');
    is_deeply([@{ $l->{token_logprobs} }[0 .. 189]],
              [undef, map { $read->[$_]{ $ids->[$_] }{logprob} } 1 .. 189],
              'echo: the same numbers, the first is null');
    is(scalar @{ $l->{tokens} }, 192, 'echo: prompt and answer');
    is($l->{top_logprobs}[0], undef, 'echo: no alternatives to the first');
    is(keys %{ $l->{top_logprobs}[5] }, 1, 'echo: one to the others');
    offsets($r->{choices}[0], 190, 'of ids');
    alone($moe, $ids, $l, $text);
    $r = ask($moe, prompt => 'The dawn of the day', max_tokens => 1,
             echo => $true, logprobs => 0);
    offsets($r->{choices}[0], $r->{usage}{prompt_tokens}, 'of a text');
    beginning($moe);

    my $s = $moe->stream('/v1/completions', { prompt => $ids, temperature => 0,
        max_tokens => 2, echo => $true, logprobs => 1, stream => $true,
        ignore_eos => $true });
    my (@values, $said);
    while (defined(my $e = $s->event)) {
        my $c = $e->{json} && $e->{json}{choices}[0] or next;
        $said .= $c->{text};
        push @values, @{ $c->{logprobs}{token_logprobs} } if $c->{logprobs};
    }
    is_deeply(\@values, $l->{token_logprobs}, 'echo: the same as a stream');
    is($said, $text, 'echo: with its text');
}

# The BOS that the engine puts in front of a text is a token of the prompt, but
# not of the text; one that the client sends is of both.  Places are counted in
# characters, which BOS has fewer of than bytes.
sub beginning {
    my ($moe) = @_;
    my $bos = "<\x{ff5c}begin\x{2581}of\x{2581}sentence\x{ff5c}>";
    my $text = "Zo\x{eb}: 3 \x{20ac}, \x{fc}ber";
    my %said = (echo => $true, logprobs => 0, max_tokens => 0);

    my $r = ask($moe, prompt => $text, %said);
    my $l = $r->{choices}[0]{logprobs};
    is($r->{choices}[0]{text}, $text, 'BOS is added: not to the text');
    is(@{ $l->{tokens} }, $r->{usage}{prompt_tokens}, '... but a token');
    is_deeply([$l->{tokens}[0], @{ $l->{text_offset} }[0, 1]], ['', 0, 0],
              '... without characters');
    offsets($r->{choices}[0], $r->{usage}{prompt_tokens}, '... of the rest');

    # As transformers do, the engine adds it all the same.
    my $sent = ask($moe, prompt => "$bos$text", %said)->{choices}[0];
    my $m = $sent->{logprobs};
    is($sent->{text}, "$bos$text", 'BOS is sent: in the text');
    is(@{ $m->{tokens} }, @{ $l->{tokens} } + 1, '... and one more token');
    is_deeply([@{ $m->{tokens} }[0, 1], @{ $m->{text_offset} }[0 .. 2]],
              ['', $bos, 0, 0, length $bos], '... behind the one that is added');
    offsets($sent, scalar @{ $m->{tokens} }, '... of the rest');
}

# No token behind it: the prompt is read to be scored.
sub alone {
    my ($moe, $ids, $both, $text) = @_;
    my $r = ask($moe, prompt => $ids, max_tokens => 0, echo => $true, n => 2,
                logprobs => 1);
    for my $c (@{ $r->{choices} }) {
        is_deeply([@$c{'text', 'finish_reason'}],
                  [substr($text, 0, length $c->{text}), 'length'],
                  'echo alone: the text, and the end');
        is_deeply($c->{logprobs}{token_logprobs},
                  [@{ $both->{token_logprobs} }[0 .. 189]],
                  'echo alone: the same numbers');
    }
    is($r->{usage}{completion_tokens}, 0, 'echo alone: says nothing');
}

# Against transformers, both in float32: with products of BF16 the mean of the
# differences is 0.03, and where a router's choice turns on it one is 1.2.
sub golden {
    my $moe = Moe->new;
    $moe->engine(args => ['--quant', 'f32']);
    $moe->nginx;
    $moe->wait_ready;
    my $g = JSON::PP::decode_json(Moe::slurp(
        "$Moe::root/t/data/prompt_logprobs.json"));
    my $r = ask($moe, prompt => $g->{tokens}, max_tokens => 1,
                prompt_logprobs => 1);
    my $list = $r->{choices}[0]{prompt_logprobs};
    my ($worst, $sum, $n_top) = (0, 0, 0);
    for my $i (1 .. $#$list) {
        my $off = abs $list->[$i]{ $g->{tokens}[$i] }{logprob}
                      - $g->{logprobs}[$i];
        $worst = $off if $off > $worst;
        $sum += $off;
        my $top = $list->[$i]{ $g->{top}[$i][0] };
        $n_top += $top && $top->{rank} == 1;
    }
    note "transformers: mean difference ", $sum / $#$list, ", largest $worst";
    cmp_ok($worst, '<', TOLERANCE, 'transformers: the same numbers');
    cmp_ok($n_top, '==', $#$list, 'transformers: the same favourites');
    $moe->done_one;
}

# What is said behind the prompt may be special, and not shown; a token may have
# a part of a character.
sub offsets {
    my ($choice, $n, $name) = @_;
    my ($text, $l) = ($choice->{text}, $choice->{logprobs});
    my @bad = grep { my $t = $l->{tokens}[$_];
                     $t !~ /\x{fffd}/
                     && substr($text, $l->{text_offset}[$_], length $t) ne $t }
              0 .. $n - 1;
    is("@bad", '', "echo $name: text_offset says where");
}

sub chat {
    my ($moe) = @_;
    my $r = $moe->post('/v1/chat/completions', { max_tokens => 1,
        prompt_logprobs => 0,
        messages => [{ role => 'user', content => 'What is 1 + 2?' }] });
    is($r->{status}, 200, 'chat') or diag $r->{body};
    my $list = $r->{json}{prompt_logprobs};
    is(@$list, $r->{json}{usage}{prompt_tokens}, 'chat: one for each token');
    is(scalar(grep { $_ && keys %$_ != 1 } @$list), 0, 'chat: no others');
    is($r->{json}{choices}[0]{prompt_logprobs}, undef, 'chat: at the top');
}

# Beside others, that want it too and that do not.
sub again {
    my ($moe) = @_;
    my @busy = map { $moe->client->request('POST', '/v1/completions', {
        prompt => \@first, max_tokens => 30, ignore_eos => $true,
        $_ % 2 ? (prompt_logprobs => 20) : () }) } 1 .. 4;
    my $r = ask($moe, prompt => \@first, max_tokens => 1,
                prompt_logprobs => 5);
    for (@busy) { is($_->response->{status}, 200, 'company') }
    return @{ $r->{choices}[0]{prompt_logprobs} };
}

sub refused {
    my ($moe) = @_;
    for ([{ stream => $true }, 'a stream'], [{ prompt_logprobs => 21 }, '21'],
         [{ prompt_logprobs => -1 }, 'all'],
         [{ prompt_logprobs => 'x' }, 'a string'])
    {
        my ($more, $name) = @$_;
        my $r = $moe->post('/v1/completions', { prompt => 'x',
            prompt_logprobs => 1, %$more });
        is($r->{status}, 400, "refused: $name");
        is($r->{json}{error}{param}, 'prompt_logprobs', "refused: $name, which");
    }
}
