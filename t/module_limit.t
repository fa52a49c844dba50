# Token budgets: what is refused before it begins and what is ended in the
# middle; the balance, to the token, over many requests of which some are
# aborted, in two workers and across a reload; quotas, weights, headers.
#
# The mock counts a prompt of n bytes as n/4 + 1 tokens, of which it has half in
# its cache.

use strict;
use warnings;

use JSON::PP ();
use Test::More;
use Time::HiRes ();

use Moe;

my $true = JSON::PP::true;

# A prompt of exactly n tokens: kind completions, whose body is the text.
sub text {
    my ($n_prompt, $script, %more) = @_;
    my $prompt = "mock $script";
    my $pad = 4 * ($n_prompt - 1) - length $prompt;
    $prompt = 'x' x $pad . $prompt if $pad > 0;
    return { prompt => $prompt, max_tokens => 100000, %more };
}

sub ask {
    my ($where, $key, $body) = @_;
    return $moe::m->client->request('POST', "/$where/completions", $body,
                                    'X-Key' => $key);
}

our $moe = $moe::m = Moe->new;

sub conf_error {
    my ($like, $name, %o) = @_;
    my ($ok, $said) = $moe->test_conf(%o);
    ok !$ok && $said =~ $like, "refused: $name" or diag $said;
}

my $zone = 'moe_token_zone $http_x_key zone=keys:1m;';

conf_error(qr/needs zone= and rate= or quota=/, 'no rate', http => $zone,
           location => 'moe_limit_tokens zone=keys;');
conf_error(qr/invalid parameter "$_"/, $_, http => $zone,
           location => "moe_limit_tokens zone=keys rate=1/s $_;")
    for 'rate=5', 'rate=5/d', 'rate=x/s', 'rate=0/s', 'burst=-1', 'quota=5/s',
        'prompt=x', 'prompt=-1', 'frob';
conf_error(qr/zero size shared memory zone "nil"/, 'an unknown zone',
           location => 'moe_limit_tokens zone=nil rate=1/s;');
conf_error(qr/duplicate moe_token_zone "keys"/, 'a zone twice',
           http => "$zone $zone");
conf_error(qr/expected a name and at least/, 'a small zone',
           http => 'moe_token_zone $http_x_key zone=keys:1k;');
conf_error(qr/expected state=path/, 'a state without a path',
           http => 'moe_token_zone $http_x_key zone=keys:1m state=;');

$moe->mock('--quiet');
my %conf = (workers => 2, http => <<'CONF', server => <<'CONF2');
    moe_token_zone $http_x_key zone=keys:1m;
    moe_token_zone $http_x_key zone=quota:1m state=%%DIR%%/quota.state;
    moe_token_zone $http_x_key zone=weights:1m;
    moe_token_zone $http_x_key zone=both:1m;
    moe_token_zone $http_x_key zone=dry:1m;
    moe_token_zone $http_x_key zone=fast:1m;
    moe_token_zone $http_x_key zone=exact:1m;
    log_format exact '$uri $status $moe_prompt_tokens $moe_completion_tokens';
    log_format moe '$uri $moe_finish_reason';
CONF
    access_log %%DIR%%/moe.log moe;
    location /keys/ { moe_pass main;
                      moe_limit_tokens zone=keys rate=1/h burst=1000; }
    location /exact/ { moe_pass main; access_log %%DIR%%/exact.log exact;
                       moe_limit_tokens zone=exact quota=1k/month; }
    location /quota/ { moe_pass main;
                       moe_limit_tokens zone=quota quota=10k/month; }
    location /both/ { moe_pass main;
        moe_limit_tokens zone=both rate=1k/h burst=200 quota=400/month; }
    location /weights/ { moe_pass main; moe_limit_tokens zone=weights
        rate=1/h burst=1k prompt=0.5 cached=0.1 completion=2; }
    location /dry/ { moe_pass main;
                     moe_limit_tokens zone=dry rate=1/h burst=10 dry_run; }
    location /fast/ { moe_pass main;
                      moe_limit_tokens zone=fast rate=1k/s burst=100; }
CONF2
$moe->nginx(%conf);
$moe->wait_ready;


# -- before it begins ------------------------------------------------------

my $r = ask('keys', 'a', text(100, 'tokens=50'))->response;
is $r->{status}, 200, 'within the budget';
is $r->{headers}{'x-ratelimit-limit-tokens'}, 1000, 'of so much';
is $r->{headers}{'x-ratelimit-remaining-tokens'}, 850, 'so much is left';
is $r->{headers}{'ratelimit-policy'}, '"tokens";q=1000', 'RateLimit-Policy';
like $r->{headers}{ratelimit}, qr/^"tokens";r=850;t=\d+$/, 'RateLimit';

$r = ask('keys', 'a', text(851, 'tokens=50'))->response;
is $r->{status}, 429, 'a prompt that is larger than the rest';
is $r->{json}{error}{code}, 'rate_limit_exceeded', 'its code';
cmp_ok $r->{headers}{'retry-after'}, '>', 0, 'Retry-After';
is $r->{headers}{'x-ratelimit-remaining-tokens'}, 850, 'costs nothing';
$r = ask('keys', 'a', text(851, 'tokens=50', stream => $true))->response;
is $r->{status}, 429, 'of a stream as well';
is ask('keys', 'b', text(851, 'tokens=1'))->response->{status}, 200,
   "another key's budget is its own";
is ask('keys', '', text(2000, 'tokens=1'))->response->{status}, 200,
   'who has no key is not counted';


# -- in the middle ---------------------------------------------------------

$r = ask('keys', 'a', text(100, 'tokens=900'))->response;
is $r->{status}, 200, 'an answer that is longer than the rest';
is $r->{json}{choices}[0]{finish_reason}, 'length', 'ends there';
is $r->{json}{usage}{completion_tokens}, 750, 'to the token';
$r = ask('keys', 'a', text(5, 'tokens=1'))->response;
is $r->{status}, 429, 'and then nothing is left';
is $r->{headers}{'x-ratelimit-remaining-tokens'}, 0, 'which is said';

my $s = ask('keys', 'c', text(10, 'tokens=2000', stream => $true))->head;
my ($n, $finish, $done) = (0);
while (my $e = $s->event) {
    $done = 1 if ($e->{data} // '') eq '[DONE]';
    my $c = ($e->{json} // {})->{choices}[0] // next;
    $n++ if length($c->{text} // '');
    $finish = $c->{finish_reason} if defined $c->{finish_reason};
}
is $n, 990, 'a stream ends there too';
is $finish, 'length', 'by length';
ok $done, 'and [DONE]';


# -- the balance -----------------------------------------------------------

# Many requests of one key at once, some of which leave, in two workers and
# through reloads: what the log says is what was charged, to the token, and no
# budget is exceeded by more than a token of each stream.
srand 7;
my ($rounds, $at_once) = ($ENV{LONG} ? 400 : 20, 25);
for my $round (1 .. $rounds) {
    my @c = map { ask("exact/k$round", $round, text(5 + int rand 20,
        'delay_ms=1 tokens=' . int(rand 120), stream => $true)) } 1 .. $at_once;
    kill 'HUP', $moe->{master} if $round % 20 == 10;
    Time::HiRes::sleep(rand 0.05);
    for my $c (@c) {
        rand() < 0.3 ? $c->close(hard => rand() < 0.5)
                     : eval { 1 while defined $c->fill('the rest')
                              && !$c->{eof} && $c->{in} !~ /\[DONE\]|"error"/ };
    }
}
$moe->until('the old workers to leave', sub {
    2 == (my @w = Moe::children($moe->{master}));
});
my %idle;
$moe->until('the end of all', sub {
    my $w = $moe->health->{worker};
    $idle{ $w->{pid} } = 1 unless $w->{open};
    keys %idle == 2;
});

# What is left of a key's budget: the answer says it, or a refusal the log.
sub left_of {
    my $round = shift;
    my $r = ask("exact/k$round", $round, '{"prompt":"mock tokens=0"}')->response;
    return $r->{headers}{'x-ratelimit-remaining-tokens'}
           + $r->{json}{usage}{prompt_tokens} if $r->{status} == 200;
    return (Moe::slurp("$moe->{dir}/error.log")
            =~ m{.* zone "exact", (-?\d+) left.*/k$round/}s)[0];
}

# Refusals cost nothing.
sub spent {
    my (%spent, $n);
    for (split /\n/, Moe::slurp("$moe->{dir}/exact.log")) {
        my ($round, $status, @tokens) = m{/k(\d+)/\S+ (\d+) (\S+) (\S+)} or die;
        $n++;
        $spent{$round} += $_ for grep { $status != 429 && $_ ne '-' } @tokens;
    }
    return ($n, \%spent);
}

my ($n_logged, $spent) = spent();
my %left = map { $_ => left_of($_) } 1 .. $rounds;
is_deeply \%left, { map { $_ => 1000 - $spent->{$_} } 1 .. $rounds },
    "$n_logged requests of $rounds keys: charged as logged, to the token";
is_deeply [grep { $_ <= -$at_once } values %left], [],
   'no budget was exceeded by more than a token of each stream';
cmp_ok scalar(grep { $_ <= 0 } values %left), '>', $rounds / 4,
   'many were used up';

$moe->reload;
$moe->wait_ready;
$spent = (spent())[1];
%left = map { $_ => left_of($_) } 1 .. $rounds;
is_deeply \%left, { map { $_ => 1000 - $spent->{$_} } 1 .. $rounds },
    'and after a reload';


# -- the other kinds -------------------------------------------------------

is ask('quota', 'a', text(100, 'tokens=900'))->response
       ->{headers}{'x-ratelimit-remaining-tokens'}, 9000, 'a quota';
$r = ask('quota', 'a', text(100, 'tokens=9500'))->response;
is $r->{json}{usage}{completion_tokens}, 8900, 'ends at its end';
$r = ask('quota', 'a', text(10, 'tokens=1'))->response;
is $r->{json}{error}{code}, 'insufficient_quota', 'and says so';
cmp_ok $r->{headers}{'retry-after'}, '<=', 31 * 86400, 'until the next month';

# A rate and a quota in one: what is said is of the one that is tighter.
$r = ask('both', 'a', text(100, 'tokens=50'))->response;
is $r->{headers}{'x-ratelimit-limit-tokens'}, 200, 'both: the bucket';
like $r->{headers}{ratelimit}, qr/^"tokens";r=50;t=5[34]\d$/, 'its time';
$r = ask('both', 'a', text(100, 'tokens=50'))->response;
is $r->{json}{error}{code}, 'rate_limit_exceeded', 'both: the bucket is empty';
cmp_ok $r->{headers}{'retry-after'}, '<=', 181, 'but not for long';
$r = ask('both', 'a', text(300, 'tokens=50'))->response;
is $r->{json}{error}{code}, 'insufficient_quota', 'both: more than the quota';
cmp_ok $r->{headers}{'retry-after'}, '>', 539, 'which takes longer';

# 101 tokens, of which 50 are cached: 51/2 + 50/10 + 2 * 10.
is ask('weights', 'a', text(101, 'tokens=10'))->response
       ->{headers}{'x-ratelimit-remaining-tokens'}, 949, 'weights';

is ask('dry', 'a', text(100, 'tokens=100'))->response->{json}{usage}
       {completion_tokens}, 100, 'a dry run refuses nothing' for 1, 2;
like $moe->log, qr/budget of zone "dry" is exceeded, dry run/, 'but says so';

ask('fast', 'a', text(10, 'tokens=200'))->response;
Time::HiRes::sleep(0.3);
is ask('fast', 'a', text(10, 'tokens=5'))->response->{status}, 200,
   'a bucket fills again';

# More keys than the zone has room for: the oldest are forgotten.
ask('keys', "many$_" . 'y' x 900, '{"prompt":"mock tokens=0"}')->response
    for 1 .. 1500;
is ask('keys', 'last', text(10, 'tokens=1'))->response->{status}, 200,
   'a full zone makes room';

# A quota outlives a restart, also of keys that are no text.
my $odd = "\xff x";
is ask('quota', $odd, text(100, 'tokens=400'))->response
       ->{headers}{'x-ratelimit-remaining-tokens'}, 9500, 'a quota';
$moe->stop_nginx;
my $state = "$moe->{dir}/quota.state";
like Moe::slurp($state), qr/^\d+ 500000 ff2078$/m, 'is in the file';
open my $f, '>>', $state or die;
print $f "nonsense\n1 2 3\n99 5 6162";
close $f;
$moe->nginx(%conf);
$moe->wait_ready;
is ask('quota', $odd, text(100, 'tokens=5'))->response
       ->{headers}{'x-ratelimit-remaining-tokens'}, 9395,
   'and is there after a restart';
is ask('quota', 'a', text(10, 'tokens=1'))->response->{status}, 429,
   'who had nothing left has nothing';
like $moe->log, qr/state "\S+quota.state": 3 lines were left out/,
     'broken lines are left out';
$moe->allow_log(qr/lines were left out/);

$moe->stop_nginx;
truncate $state, 300 << 20 or die;
$moe->nginx(%conf);
$moe->wait_ready;
like $moe->log, qr/state "\S+" could not be read: 314572800 bytes, expected at/,
     'a file that is too large is not read';
$moe->allow_log(qr/could not be read: 314572800 bytes/);

$moe->stop_nginx;
like Moe::slurp("$moe->{dir}/moe.log"), qr{^/keys/completions budget$}m,
     '$moe_finish_reason';
$moe->allow_log(qr/limiting tokens/);
$moe->done;
