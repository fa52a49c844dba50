# The engine alone, through its rings: answers, limits, errors, determinism.

use strict;
use warnings;

use lib 't/lib';
use Test::More;

use Moe::Engine;

my $e = Moe::Engine->new(args => ['--max-seqs', 16, '--max-queue', 40]);
my @seeded = ('--seed', 5, '--temperature', 1);
my @l;


# -- one chat --------------------------------------------------------------

my %s = $e->status;
is "$s{model} $s{context} $s{vocab}", 'tiny 1024 263', 'what WELCOME says';
is "$s{state} $s{running} $s{queued} $s{used}", '1 0 0 0', 'the page at rest';

@l = $e->client('--chat', 'hello', @seeded, '--max-tokens', 20, '--flags', 4);
is $?, 0, 'a chat ends';
is $l[0], 'start prompt=8 cached=0', 'bos, <user>, 5 bytes, <assistant>';
is scalar(grep { /^finish 0 length$/ } @l), 1, 'it was cut at max_tokens';
is $l[-1], 'done prompt=8 cached=0 output=20 reasoning=0', 'usage';
ok !(grep { /NOT-UTF-8/ } @l), 'random bytes come out as whole characters';

my @again = $e->client('--chat', 'hello', @seeded, '--max-tokens', 20,
                       '--flags', 4);
is_deeply \@again, \@l, 'the same seed says the same';

@again = $e->client('--chat', 'hello', '--seed', 6, '--max-tokens', 20,
                    '--flags', 4);
isnt Moe::Engine::ids(\@again), Moe::Engine::ids(\@l), 'another one does not';

my @greedy = $e->client('--chat', 'hello', '--temperature', 0,
                        '--max-tokens', 20, '--flags', 4);
@again = $e->client('--chat', 'hello', '--top-k', 1, '--max-tokens', 20,
                    '--flags', 4);
is Moe::Engine::ids(\@again), Moe::Engine::ids(\@greedy),
   'temperature 0 is top_k 1';

@l = $e->client('--chat', 'x', '--bias', '1:100', '--max-tokens', 9);
is $l[1], 'finish 0 stop', 'end of turn stops, and is not shown';
is $l[2], 'done prompt=4 cached=0 output=1 reasoning=0', 'but counted';

@l = $e->client('--chat', 'x', '--bias', '1:100', '--max-tokens', 9,
                '--flags', 4);
is $l[-1], 'done prompt=4 cached=0 output=9 reasoning=0', 'ignore_eos goes on';
is Moe::Engine::text(\@l), '', 'special tokens have no text';


# -- stop strings, choices, log-probabilities ------------------------------

# Token 3 + 126 is the byte "~"; the bias makes it all but certain.
my @tilde = ('--bias', '129:100', '--flags', 4);
@l = $e->client('--chat', 'x', @tilde, '--max-tokens', 6);
is Moe::Engine::text(\@l), '~~~~~~', 'bias';

for my $n (1 .. 6) {
    @l = $e->client('--chat', 'x', @tilde, '--max-tokens', 6,
                    '--stop', '~' x $n);
    is Moe::Engine::text(\@l), '', "stop string over $n tokens does not leak";
    like $l[-1], qr/ output=$n /, 'and ends the answer at once';
}

@l = $e->client('--chat', 'x', @tilde, '--max-tokens', 6, '--stop', '~' x 7,
                '--stop', 'abc');
is Moe::Engine::text(\@l), '~~~~~~', 'what did not become one is shown';
is Moe::Engine::ids(\@l), join(',', (129) x 6), 'with the ids of all tokens';

@l = $e->client('--chat', 'hello', @seeded, '--max-tokens', 12, '--n', 8,
                '--flags', 4);
my %ids = map { Moe::Engine::ids(\@l, $_) => 1 } 0 .. 7;
is scalar(keys %ids), 8, 'eight choices differ';
is scalar(grep { /^finish [0-7] length$/ } @l), 8, 'each one finishes';
is $l[-1], 'done prompt=8 cached=0 output=96 reasoning=0', 'usage of all';

@again = $e->client('--chat', 'hello', @seeded, '--max-tokens', 12,
                    '--flags', 4);
is Moe::Engine::ids(\@again), Moe::Engine::ids(\@l, 0),
   'the first is what one alone would be';

# A prompt of exactly one page, of one less, one more: forks at the edges.
for my $n (64 - 3 - 1, 64 - 3, 64 - 3 + 1) {
    my @n = $e->client('--chat', 'y' x $n, @seeded, '--max-tokens', 5,
                       '--n', 2, '--flags', 4);
    like $n[0], qr/prompt=${\($n + 3)} /, "prompt of " . ($n + 3);
    my @one = $e->client('--chat', 'y' x $n, @seeded, '--max-tokens', 5,
                         '--flags', 4);
    is Moe::Engine::ids(\@n, 0), Moe::Engine::ids(\@one), 'choice 0 as alone';
}

@l = $e->client('--chat', 'hello', @seeded, '--max-tokens', 3,
                '--logprobs', 20, '--flags', 4);
my @lp = map { /logprob (\d+):(\S+) \[((?: \d+:\S+){20}) \]/ } @l;
is scalar(@lp), 9, 'each token has its logprob and 20 others';
ok $lp[1] < 0, 'a logprob is negative';
my @top = $lp[2] =~ /:(\S+)/g;
is join(' ', @top), join(' ', sort { $b <=> $a } @top), 'best first';

@l = $e->client('--chat', 'hello', '--temperature', 0, '--max-tokens', 30,
                '--flags', 4, '--frequency', 2, '--presence', 2);
my @said = split /,/, Moe::Engine::ids(\@l);
my %said = map { $_ => 1 } @said;
is scalar(keys %said), scalar(@said), 'penalties keep tokens from coming back';


# -- prompts ---------------------------------------------------------------

@l = $e->client('--complete', 'abc', '--max-tokens', 2, '--flags', 6);
like $l[0], qr/^start prompt=[34] /, 'a completion is read as it is';
is $l[1], 'delta 0 content ids= text="abc"', 'and echoed';

@l = $e->client('--ids', '0,100,101', '--max-tokens', 2, '--flags', 4);
is $l[0], 'start prompt=3 cached=0', 'ids as a prompt';

@l = $e->client('--body', '{"messages":[{"role":"user","content":"q"},'
                . '{"role":"assistant","content":"~~ "}],'
                . '"continue_final_message":true}', '--max-tokens', 1);
is $l[0], 'start prompt=6 cached=0', 'an assistant message is continued';

@l = $e->client('--body', '{"messages":[{"role":"user","content":"q"}],'
                . '"think":true}', @tilde, '--max-tokens', 3);
is Moe::Engine::text(\@l, 'reasoning'), '~~~', 'an opened <think> is reasoning';
like $l[-1], qr/ reasoning=3$/, 'and counted';

@l = $e->client('--body', '{"messages":[{"role":"user","content":"q"}],'
                . '"think":true}', '--bias', '129:100', '--flags', 12,
                '--max-tokens', 3);
is Moe::Engine::text(\@l), '~~~', 'raw reasoning stays in content';


# -- limits and errors -----------------------------------------------------

sub error_of { return (grep { /^error/ } $e->client(@_))[0] // 'none' }

like error_of('--chat', 'x' x 2000),
     qr/^error code=2 .*=messages text=This model's maximum context length is/,
     'a prompt beyond the context';
like error_of('--complete', 'x' x 1100), qr/code=2 .*param=prompt /,
     'a completion beyond the context';

@l = $e->client('--chat', 'x' x 1000, '--max-tokens', 5000, '--flags', 4);
is $l[-1], 'done prompt=1003 cached=0 output=21 reasoning=0',
   'max_tokens beyond the room is cut to it';
is $l[-2], 'finish 0 length', 'as LENGTH';

my @bad = (
    [qr/param=messages text=messages: expected a list/, '{"messages":[]}'],
    [qr/param=messages text=messages\[0\]: expected an obj/, '{"messages":[1]}'],
    [qr/param=messages text=line 1, column /, '{"messages":'],
    [qr/param=messages text=template: no such thing/,
     '{"messages":[{"role":"user","content":"q"}],"fail":1}'],
    [qr/param=messages text=/, '{"messages":[{"role":"user","content":{}}]}'],
);
like error_of('--body', $_->[1]), qr/^error code=1 retry=0 $_->[0]/, $_->[1]
    for @bad;

like error_of('--chat', 'x', '--temperature', 3), qr/code=1 .*=temperature /,
     'the engine checks ranges itself';
like error_of('--chat', 'x', '--stop', ''), qr/code=1 .*param=stop /,
     'an empty stop string';
like error_of('--ids', '0,268'), qr/code=1 .*param=prompt /,
     'a token that the model has no row for';
like error_of('--chat', 'x', '--bias', '263:1'), qr/code=1 .*=logit_bias /,
     'a bias for a token without text';


# -- company ---------------------------------------------------------------

# D6: alone, and among 15 others of all lengths.
my @alone = $e->client('--chat', 'company', @seeded, '--max-tokens', 60,
                       '--flags', 4);
my @others = map {
    scalar $e->client_start('--chat', 'z' x (20 * $_), '--seed', $_,
                            '--max-tokens', 120, '--flags', 4)
} 1 .. 15;
my @company = $e->client('--chat', 'company', @seeded, '--max-tokens', 60,
                         '--flags', 4);
for my $h (@others) { 1 while <$h>; close $h }
is Moe::Engine::ids(\@company), Moe::Engine::ids(\@alone),
   'output does not depend on company';

# The queue is bounded: 16 run, 40 wait, the others come back later.
@l = $e->client('--load', 200, '--slots', 200, '--window', 64, '--chat', 'q',
                '--max-tokens', 100, '--flags', 4);
my ($done, $error) = $l[-1] =~ /^done=(\d+) error=(\d+) cancelled=0$/;
is $done + $error, 200, 'each of 200 at once has one end';
cmp_ok $done, '>=', 16, 'those that fit are answered';
cmp_ok $error, '>', 0, 'those that do not are refused';

$e->until_idle;
$e->stop;


# -- few pages -------------------------------------------------------------

# Room for two sequences of full length, asked for by 24 that may grow to it.
$e = Moe::Engine->new(args => ['--max-seqs', 24, '--kv-bytes', '400k']);
%s = $e->status;
cmp_ok $s{pages}, '<', 2 * 24, 'few pages';
@l = $e->client('--load', 60, '--slots', 24, '--chat', 'grow', '--flags', 4,
                '--max-tokens', 600);
is $l[-1], 'done=60 error=0 cancelled=0', 'all come to their end';
like error_of('--chat', 'x', '--n', 8, '--flags', 4),
     qr/^error code=2 .*param=n text=8 choices of 1024 tokens do not fit/,
     'what can never fit is refused';
$e->until_idle;
$e->stop;
done_testing;
