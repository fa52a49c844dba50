# The whole path with the demo model: a question goes in as curl would send it,
# its working and its answer come back one event a token, over HTTP/1.1 with
# keep-alive, HTTP/2, and compressed.

use strict;
use warnings;

use JSON::PP ();
use Test::More;

use Moe;

my $moe = Moe->new;
$moe->engine(args => ['--log-level', 'info']);
$moe->nginx(http => <<'CONF')->wait_ready;
    gzip on; gzip_types text/event-stream; gzip_min_length 0;
CONF

my $url = 'http://127.0.0.1:' . $moe->port;
my $question = 'What is 347 + 285?';
my $ask = { messages => [{ role => 'user', content => $question }],
            stream => JSON::PP::true, temperature => 0,
            stream_options => { include_usage => JSON::PP::true } };

sub right {
    my ($how, $r) = @_;
    like($r->{content}, qr/\b632\b/, "$how: the answer is right");
    like($r->{reasoning}, qr/\d/, "$how: its working comes before it");
    is($r->{finish}, 'stop', "$how: one finish reason");
    ok($r->{done}, "$how: [DONE]");
}

# Deltas of choice 0 of the events in curl's output.
sub deltas {
    return map { $_->{choices}[0]{delta} } grep { @{ $_->{choices} } }
           map { JSON::PP::decode_json($_) } $_[0] =~ /^data: (\{.*)$/mg;
}


# -- the command of the README ---------------------------------------------

SKIP: {
    skip 'no curl', 5 unless Moe::find('curl');
    my $out = `curl -sN $url/v1/chat/completions -d '{"messages":[{"role":"user","content":"$question"}],"stream":true}'`;
    is($?, 0, 'curl is content');
    like($out, qr/^data: \[DONE\]\n\n\z/m, 'curl: [DONE]');
    like(join('', map { $_->{reasoning_content} // '' } deltas($out)), qr/\d/,
         'curl: reasoning');
    like(join('', map { $_->{content} // '' } deltas($out)), qr/\b632\b/,
         'curl: content');
    like($out, qr/"finish_reason":\s*"stop"/, 'curl: finish_reason');
}


# -- the engine's log ------------------------------------------------------

{
    my $trace = '4bf92f3577b34da6a3ce929d0e0e4736';
    my $c = $moe->stream('/v1/chat/completions', $ask, traceparent =>
                         "00-$trace-00f067aa0ba902b7-01");
    my ($span) = $c->{headers}{traceresponse} =~ /^00-$trace-(\w{16})-01$/;
    my ($id) = $c->event->{json}{id} =~ /^chatcmpl-(\w{32})$/;
    my $usage = $c->collect->{usage};
    my ($line) = Moe::slurp("$moe->{dir}/engine.log") =~ /(request $id.*)/;
    like($line, qr/^request $id of worker \d+, trace $trace-$span: done; /,
         'one line has the names of the request and of its trace');
    my ($in, $out) = @$usage{qw(prompt_tokens completion_tokens)};
    like($line, qr/: done; $in tokens of prompt, \d+ cached, $out said; /,
         'and its tokens');
    $c = $moe->stream('/v1/chat/completions', $ask);
    ($id) = $c->event->{json}{id} =~ /^chatcmpl-(\w{32})$/;
    $c->close;
    $moe->until('the line about its end', sub {
        Moe::slurp("$moe->{dir}/engine.log")
            =~ /request $id of worker \d+, trace \w+-\w+: cancelled; / });
    pass('also of one that was cancelled');
}


# -- HTTP/1.1 --------------------------------------------------------------

my $c = $moe->client;
my $first = $c->request('POST', '/v1/chat/completions', $ask)->head->collect;
is($c->{status}, 200, 'status');
like($c->{headers}{'content-type'}, qr{^text/event-stream}, 'type');
right('HTTP/1.1', $first);

# The tokens that say nothing are <think>, </think> and the end of the turn.
my $tokens = $first->{usage}{completion_tokens};
cmp_ok($first->{n_events}, '>=', $tokens - 3, 'one event a token, not fewer');
cmp_ok($first->{n_events}, '<=', $tokens, 'and not more');
my $order = join '', map { ($_->{content} // '') ne '' ? 'c'
                           : defined $_->{reasoning_content} ? 'r' : '' }
            map { $_->{json}{choices}[0]{delta} }
            grep { $_->{json} && @{ $_->{json}{choices} } } @{ $first->{events} };
like($order, qr/^r+c+$/, 'first the working, then the answer');

my $second = $c->request('POST', '/v1/chat/completions', $ask)->head->collect;
right('keep-alive', $second);
is($second->{content}, $first->{content}, 'the same answer again');
my $whole = $c->request('POST', '/v1/chat/completions',
                        { %$ask, stream => JSON::PP::false,
                          stream_options => undef })->response;
is($whole->{json}{choices}[0]{message}{content}, $first->{content},
   'and not streamed');
is($whole->{json}{usage}{completion_tokens}, $tokens, 'with the same usage');
$c->close;


# -- compressed ------------------------------------------------------------

my $z = $moe->stream('/v1/chat/completions', $ask, 'Accept-Encoding' => 'gzip');
is($z->{headers}{'content-encoding'}, 'gzip', 'compressed');
my $r = $z->collect;
right('gzip', $r);
is($r->{content}, $first->{content}, 'gzip: the same answer');


# -- HTTP/2 ----------------------------------------------------------------

SKIP: {
    skip 'curl has no HTTP/2', 4
        unless `curl --version 2>/dev/null` =~ /\bHTTP2\b/;
    $moe->write('ask.json', JSON::PP::encode_json($ask));
    my $h2 = $moe->port('h2');
    my $out = `curl -sN --http2-prior-knowledge -w 'HTTP/%{http_version}' -d \@$moe->{dir}/ask.json http://127.0.0.1:$h2/v1/chat/completions`;
    is($?, 0, 'HTTP/2: curl is content');
    like($out, qr{HTTP/2$}, 'HTTP/2: it is that');
    like($out, qr/^data: \[DONE\]$/m, 'HTTP/2: [DONE]');
    is(join('', map { $_->{content} // '' } deltas($out)), $first->{content},
       'HTTP/2: the same answer');
}


# -- switches --------------------------------------------------------------

$r = $moe->stream('/v1/chat/completions', { %$ask,
    chat_template_kwargs => { enable_thinking => JSON::PP::false } })->collect;
is($r->{reasoning}, '', 'without thinking: no reasoning');
isnt($r->{content}, '', 'without thinking: an answer');

$r = $moe->stream('/v1/chat/completions', { %$ask, max_tokens => 3 })->collect;
is($r->{finish}, 'length', 'max_tokens: finish_reason');
is($r->{usage}{completion_tokens}, 3, 'max_tokens: usage');

$r = $moe->post('/v1/completions', { prompt => 'An otter is', max_tokens => 8 });
is($r->{status}, 200, 'completions: status');
is($r->{json}{object}, 'text_completion', 'completions: object');

$r = $moe->stream('/v1/chat/completions', { %$ask, messages => [
    { role => 'user', content => 'Hello!' },
    { role => 'assistant', content => 'Hello! How can I help?' },
    { role => 'user', content => $question } ] })->collect;
is($r->{finish}, 'stop', 'a conversation of several turns is answered');

ok($moe->until('no job', sub { !$moe->busy }), 'no job is left');
$moe->done;
