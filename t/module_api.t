# The API dialects: what of a request reaches the engine, what is refused and
# with which words, and what answers look like.  The engine is mock_engine,
# which tells what it got.

use strict;
use warnings;

use JSON::PP ();
use Test::More;

use Moe;

my $moe = Moe->new;
$moe->mock;
$moe->nginx(engine => 'alias gpt-mock;');
$moe->wait_ready;

my ($true, $false, $null) = (JSON::PP::true, JSON::PP::false, undef);
my @user = (messages => [{ role => 'user', content => 'mock dump' }]);

sub chat { $moe->post('/v1/chat/completions', ref $_[0] || @_ == 1
                      ? $_[0] : { @user, @_ }) }
sub text { $moe->post('/v1/completions', { prompt => 'mock dump', @_ }) }
sub said { $_[0]{json}{choices}[0]{message}{content}
           // $_[0]{json}{choices}[0]{text} // $_[0]{body} }

# A refusal: status 400, and the parameter that is to blame.
sub refused {
    my ($r, $param, $name, $status) = @_;
    my $e = $r->{json}{error} // {};
    ok $r->{status} == ($status // 400)
       && ($e->{param} // 'none') eq ($param // 'none')
       && length($e->{message} // '')
       && $e->{type} eq 'invalid_request_error', "refused: $name"
        or diag $r->{status}, ' ', $r->{body};
}


# -- parameters ------------------------------------------------------------

like said(chat()), qr/^kind=1 n_choices=1 given=0x20 flags=0 /,
     'defaults of chat: a seed alone';
like said(text()), qr/^kind=2 n_choices=1 given=0x60 flags=0 max_tokens=16 /,
     'completions end after 16 tokens unless told otherwise';

isnt +(said(chat()) =~ /seed=(\d+)/)[0], (said(chat()) =~ /seed=(\d+)/)[0],
     'which is another one each time';

my %all = (temperature => 0.5, top_p => 0.25, min_p => 0.125, top_k => 40,
           presence_penalty => -1, frequency_penalty => 1.5,
           repetition_penalty => 1.25, seed => -1, max_tokens => 77);
my $all = qr/given=0x7f\ flags=0\ max_tokens=77\ temperature=0.5\ top_p=0.25
             \ min_p=0.125\ top_k=40\ presence=-1\ frequency=1.5
             \ repetition=1.25\ n_top_logprobs=0\ seed=18446744073709551615/x;
like said(chat(%all)), $all, 'all numbers, chat';
like said(text(%all)), $all, 'all numbers, completions';
like said(chat(map { $_ => $null } keys %all)), qr/ given=0x20 /,
     'null is as good as absent';
like said(chat(max_tokens => 5, max_completion_tokens => 6)),
     qr/given=0x60 .*max_tokens=6 /, 'max_completion_tokens wins';
like said(chat(max_completion_tokens => 9)), qr/max_tokens=9 /,
     'max_completion_tokens alone';
like said(chat(top_p => 0)), qr/top_p=1e-06/, 'top_p 0 is the likeliest token';
like said(chat(stop => 'END')), qr/ stop=<END> id=/, 'stop as a string';
like said(chat(stop => ["a", "\x{20ac}b", "abcde"])),
     qr/ stop=<a> stop=<\x{20ac}b> stop=<abcde> id=/, 'stop as a list';
like said(chat(logit_bias => { 50256 => -100, 7 => 1.5 })),
     qr/ bias=(?:7:1.5 bias=50256:-100|50256:-100 bias=7:1.5) id=/, 'logit_bias';
like said(chat(logprobs => $true, top_logprobs => 3)),
     qr/flags=0x1 .*n_top_logprobs=3/, 'logprobs of chat';
like said(text(logprobs => 2, echo => $true)),
     qr/flags=0x13 .*n_top_logprobs=2/, 'logprobs and echo of completions';
like said(text(prompt_logprobs => 2)), qr/flags=0x10 /, 'prompt_logprobs';
like said(chat(ignore_eos => $true)), qr/flags=0x4 /, 'ignore_eos';
like said(chat(user => 'me', store => $false, metadata => {}, frobnicate => 1)),
     qr/given=0x20 flags=0 /, 'unknown parameters are ignored';
like said(chat(response_format => { type => 'text' })), qr/given=0x20 /,
     'response_format text';

my @wrong = (
    [temperature => 2.01], [temperature => -0.1], [temperature => '1'],
    [temperature => $true], [temperature => [1]], [top_p => 1.1],
    [top_p => -1], [min_p => 2], [top_k => -2], [top_k => 1.5],
    [presence_penalty => 3], [frequency_penalty => -2.5],
    [repetition_penalty => 0], [repetition_penalty => 11], [seed => 1.5],
    [seed => 'x'], [max_tokens => 0], [max_tokens => -1],
    [max_tokens => 5000000000], [max_tokens => 1.0 + 0.5],
    [max_completion_tokens => 0], [n => 0], [n => 9], [n => '1'],
    [stream => 1], [stream => 'true'], [stop => 5], [stop => ['a', 5]],
    [stop => ''], [stop => [('a') x 17]], [stop => 'x' x 1025],
    [logit_bias => []], [logit_bias => { x => 1 }], [logit_bias => { 1 => 101 }],
    [logit_bias => { -1 => 1 }], [logit_bias => { 1 => 'x' }],
    [logprobs => 1], [top_logprobs => 2], [model => 5],
    [stream_options => { include_usage => $true }],
    [response_format => { type => 'json_object' }],
    [response_format => 'text'], [chat_template => '{{ x }}'],
    [tool_choice => 'required'], [tools => {}], [tools => [1]],
    [documents => 'x'], [reasoning_effort => 1], [enable_thinking => 'yes'],
    [chat_template_kwargs => []],
);
refused(chat(@$_), $_->[0], "chat, $_->[0] " . JSON::PP->new->allow_nonref
        ->canonical->encode($_->[1]) =~ s/(.{30}).*/$1../r) for @wrong;
refused(chat(logprobs => $true, top_logprobs => 21), 'top_logprobs',
        'chat, 21 top_logprobs');
refused(chat(response_format => {}), 'response_format.type',
        'response_format without a type');
refused(chat(stream => $true, stream_options => { include_usage => 1 }),
        'stream_options.include_usage', 'include_usage that is a number');
refused(chat(chat_template_kwargs => { chat_template => 'x' }),
        'chat_template_kwargs.chat_template', 'a template among the kwargs');
refused(chat(chat_template_kwargs => { messages => [] }),
        'chat_template_kwargs.messages', 'messages among the kwargs');
refused(text(@$_), $_->[0], "completions, $_->[0]")
    for [suffix => 'x'], [best_of => 2], [logprobs => 21], [logprobs => $true],
        [echo => 1], [prompt => $null], [prompt => []], [prompt => ['a', 'b']],
        [prompt => [1, 'b']], [prompt => [-1]], [prompt => 5],
        [prompt => [[]]];
refused(text(max_tokens => 0), 'max_tokens', 'completions of nothing');
like said(text(max_tokens => 0, echo => $true)), qr/ max_tokens=0 /,
     'completions, an echo alone';
ok text(best_of => 2, n => 2)->{status} == 200, 'best_of equal to n';


# -- messages --------------------------------------------------------------

# What the template would get.
sub echo {
    my %body = @_;
    push @{ $body{messages} }, { role => 'user', content => 'mock echo' };
    my $r = chat(\%body);
    my $got = eval { JSON::PP->new->utf8(0)->decode(said($r)) };
    return $got // $r->{body};
}

my $call = [{ id => 'c1', type => 'function',
              function => { name => 'f', arguments => '{"x": 0.5}' } }];
is_deeply echo(messages => [
        { role => 'system', content => "S\x{e9}\x{1f600}\"\\\n" },
        { role => 'developer', content => 'D', name => 'dev' },
        { role => 'user', content => [{ type => 'text', text => 'a' },
                                      { type => 'text', text => 'b' }] },
        { role => 'assistant', content => undef, tool_calls => $call,
          reasoning_content => 'hm', audio => 'no', refusal => undef },
        { role => 'tool', content => '42', tool_call_id => 'c1' },
        { role => 'assistant' },
        { role => 'user', content => [] },
    ], tools => [{ type => 'function', function => { name => 'f' } }],
    documents => [{ text => 'd' }], reasoning_effort => 'low',
    enable_thinking => $false, chat_template_kwargs => { thinking => $true },
    temperature => 1), {
    messages => [
        { role => 'system', content => "S\x{e9}\x{1f600}\"\\\n" },
        { role => 'developer', content => 'D', name => 'dev' },
        { role => 'user', content => 'ab' },
        { role => 'assistant', content => undef, tool_calls => $call,
          reasoning_content => 'hm' },
        { role => 'tool', content => '42', tool_call_id => 'c1' },
        { role => 'assistant', content => undef },
        { role => 'user', content => '' },
        { role => 'user', content => 'mock echo' },
    ],
    tools => [{ type => 'function', function => { name => 'f' } }],
    documents => [{ text => 'd' }], reasoning_effort => 'low',
    enable_thinking => $false, thinking => $true,
}, 'messages, tools and arguments reach the template, and nothing else';

is_deeply [sort keys %{ echo(tools => [{}], tool_choice => 'none') }],
          ['messages'], 'tool_choice none drops the tools';

sub message { chat({ messages => [{ role => 'user', content => 'x' }, @_] }) }

refused(chat({}), 'messages', 'no messages');
refused(chat({ messages => [] }), 'messages', 'empty messages');
refused(chat({ messages => 'hi' }), 'messages', 'messages that are a string');
refused(message('x'), 'messages[1]', 'a message that is a string');
refused(message({ content => 'x' }), 'messages[1].role', 'no role');
refused(message({ role => 'robot', content => 'x' }), 'messages[1].role',
        'an unknown role');
refused(message({ role => 5, content => 'x' }), 'messages[1].role',
        'a role that is a number');
refused(message({ role => 'user' }), 'messages[1].content', 'no content');
refused(message({ role => 'user', content => undef }), 'messages[1].content',
        'null content of a user');
refused(message({ role => 'user', content => 5 }), 'messages[1].content',
        'content that is a number');
refused(message({ role => 'user', content => [{ type => 'text', text => 'x' },
                                              { type => 'image_url' }] }),
        'messages[1].content[1].type', 'an image');
refused(message({ role => 'user', content => [{ type => 'text' }] }),
        'messages[1].content[0].text', 'a text part without text');
refused(message({ role => 'user', content => ['x'] }),
        'messages[1].content[0].type', 'a part that is a string');
refused(message({ role => 'assistant', tool_calls => 'x' }),
        'messages[1].tool_calls', 'tool_calls that are a string');


# -- JSON ------------------------------------------------------------------

my $msg = '"messages":[{"role":"user","content":"mock dump"}]';

sub raw { chat($_[0]) }

for (['', 'empty body'], ['{', 'one brace'], ['{"messages":[', 'cut short'],
     ['[]', 'an array'], ['"x"', 'a string'], ['null', 'null'],
     ["{$msg} x", 'text behind it'], ["{$msg,}", 'a trailing comma'],
     ["{'a':1}", 'single quotes'], ["{$msg,\"a\":\"\xff\"}", 'invalid UTF-8'],
     ["{$msg,\"a\":\"\xed\xa0\x80\"}", 'a surrogate in UTF-8'],
     ["{$msg,\"a\":\"\\ud800\"}", 'a lone surrogate'],
     ["{$msg,\"a\":\"\\ud800x\"}", 'half a pair'],
     ["{$msg,\"a\":\"\\u0000\"}", 'a NUL'], ["{$msg,\"a\":\"\n\"}", 'a raw LF'],
     ["{$msg,\"a\":NaN}", 'NaN'], ["{$msg,\"seed\":9223372036854775808}",
     'an integer of 65 bits'], ["{$msg,\"temperature\":1e999}", 'infinity'],
     ["{$msg,\"a\":" . '[' x 49 . ']' x 49 . '}', '50 levels'],
     ["{$msg,\"a\":" . '[' x 200000, '200,000 levels']) {
    refused(raw($_->[0]), undef, "JSON, $_->[1]");
}
like raw("{\n \"messages\": oops}")->{json}{error}{message},
     qr/line 2, column \d+/, 'errors of JSON tell line and column';
ok raw("{$msg,\"a\":" . '[' x 46 . ']' x 46 . '}')->{status} == 200,
   '47 levels are read';
ok raw("{$msg,\"a\":\"[[[[" . '[\\"{' x 100 . '"}')->{status} == 200,
   'brackets in strings do not nest';
ok raw(" \r\n\t{$msg}\n")->{status} == 200, 'blanks around it';


# -- endpoints -------------------------------------------------------------

my $r = $moe->get('/v1/models');
is_deeply $r->{json}, { object => 'list', data => [
    { id => 'mock', object => 'model', created => 1700000000,
      owned_by => 'mock', max_model_len => 4096 }] }, 'models';
is $moe->get('/v1/models/mock')->{json}{id}, 'mock', 'one model';
refused($moe->get('/v1/models/gpt-5'), 'model', 'an unknown model', 404);
is $moe->get('/v1/models/gpt-5')->{json}{error}{code}, 'model_not_found',
   'its code';
$r = $moe->client->request('HEAD', '/v1/models', undef)->response;
ok $r->{status} == 200 && $r->{body} eq '', 'HEAD';

refused($moe->get('/v1/nothing'), undef, 'an unknown endpoint', 404);
for (['GET', '/v1/chat/completions', 'POST'], ['GET', '/v1/completions', 'POST'],
     ['HEAD', '/v1/completions', 'POST'], ['OPTIONS', '/v1/completions', 'POST'],
     ['PUT', '/v1/chat/completions', 'POST'],
     ['POST', '/v1/models', 'GET, HEAD'], ['DELETE', '/v1/models/mock',
     'GET, HEAD']) {
    my ($method, $path, $allow) = @$_;
    $r = $moe->client->request($method, $path, $method eq 'PUT' ? '{}' : undef)
             ->response;
    ok $r->{status} == 405 && $r->{headers}{allow} eq $allow, "$method $path";
}

is chat(model => 'mock')->{status}, 200, 'the model by its name';
is chat(model => 'gpt-mock')->{status}, 200, 'the model by its alias';
refused(chat(model => 'gpt-5'), 'model', 'another model', 404);

# The same connection goes on after all of that.
my $c = $moe->client;
for (1 .. 3) {
    is $c->request('POST', '/v1/chat/completions', '{')->response->{status},
       400, "keep-alive, bad request $_";
    is $c->request('GET', '/v1/nothing')->response->{status}, 404,
       "keep-alive, no endpoint $_";
    is $c->request('POST', '/v1/chat/completions', { @user })
         ->response->{status}, 200, "keep-alive, request $_";
}


# -- answers ---------------------------------------------------------------

sub shape {     # keys, and types of values, all the way down
    my $v = shift;
    return { map { $_ => shape($v->{$_}) } keys %$v } if ref $v eq 'HASH';
    return [map { shape($_) } @$v] if ref $v eq 'ARRAY';
    return defined $v ? ref $v ? 'bool' : 'value' : undef;
}

my $usage = { prompt_tokens => 'value', completion_tokens => 'value',
              total_tokens => 'value',
              prompt_tokens_details => { cached_tokens => 'value' },
              prompt_cache_hit_tokens => 'value',
              prompt_cache_miss_tokens => 'value',
              completion_tokens_details => { reasoning_tokens => 'value' } };
$r = chat(messages => [{ role => 'user',
                         content => 'mock tokens=3 reasoning=2' }]);
is_deeply shape($r->{json}), {
    id => 'value', object => 'value', created => 'value', model => 'value',
    choices => [{ index => 'value', finish_reason => 'value', logprobs => undef,
                  message => { role => 'value', content => 'value',
                               reasoning_content => 'value',
                               refusal => undef } }],
    usage => $usage }, 'shape of a chat completion';
is $r->{json}{choices}[0]{message}{content}, 'w0 w1 w2 ', 'content';
is $r->{json}{choices}[0]{message}{reasoning_content}, 'r0 r1 ', 'reasoning';
is $r->{json}{usage}{completion_tokens}, 5, 'completion_tokens';
is $r->{json}{usage}{completion_tokens_details}{reasoning_tokens}, 2,
   'reasoning_tokens';
is $r->{headers}{'content-type'}, 'application/json', 'content type';
ok defined $r->{headers}{'content-length'}, 'content length';
like $r->{json}{id}, qr/^chatcmpl-[0-9a-f]{32}$/, 'id';

$r = chat(messages => [{ role => 'user', content => 'mock tokens=9' }],
          max_tokens => 2, n => 3);
is_deeply [map { [@$_{qw(index finish_reason)}, $_->{message}{content}] }
           @{ $r->{json}{choices} }],
          [map { [$_, 'length', 'w0 w1 '] } 0 .. 2], 'three choices, cut short';

$r = chat(messages => [{ role => 'user', content => 'mock tokens=2' }],
          logprobs => $true, top_logprobs => 2);
my $lp = $r->{json}{choices}[0]{logprobs};
is_deeply [map { $_->{token} } @{ $lp->{content} }], ['w0 ', 'w1 '],
          'logprobs: tokens';
is_deeply $lp->{content}[0]{bytes}, [map { ord } split //, 'w0 '],
          'logprobs: bytes';
is scalar @{ $lp->{content}[1]{top_logprobs} }, 2, 'logprobs: two best';
is_deeply [sort keys %{ $lp->{content}[1]{top_logprobs}[0] }],
          [qw(bytes logprob token)], 'logprobs: shape of the best';

$r = text(prompt => 'mock tokens=3', logprobs => 2);
$lp = $r->{json}{choices}[0]{logprobs};
is $r->{json}{object}, 'text_completion', 'text_completion';
like $r->{json}{id}, qr/^cmpl-/, 'its id';
is $r->{json}{choices}[0]{text}, 'w0 w1 w2 ', 'its text';
is_deeply $lp->{tokens}, ['w0 ', 'w1 ', 'w2 '], 'completions: tokens';
is_deeply $lp->{text_offset}, [0, 3, 6], 'completions: text_offset';
is scalar @{ $lp->{$_} }, 3, "completions: $_"
    for qw(token_logprobs top_logprobs);
is text(prompt => [1, 2, 70000])->{status}, 200, 'a prompt of ids';
is said(text(prompt => ['mock tokens=1'])), 'w0 ', 'a list of one prompt';


# -- streams ---------------------------------------------------------------

sub events {
    my $c = $moe->stream(@_);
    my @e;
    while (my $e = $c->event) { push @e, $e }
    return @e;
}

my @e = events('/v1/chat/completions', { stream => $true, n => 2,
    messages => [{ role => 'user', content => 'mock tokens=2 reasoning=1' }] });
is $e[-1]{data}, '[DONE]', 'the last event';
pop @e;
my %by;
push @{ $by{ $_->{json}{choices}[0]{index} } }, $_->{json}{choices}[0] for @e;
for my $i (0, 1) {
    is_deeply [map { $_->{delta} } @{ $by{$i} }],
        [{ role => 'assistant', content => '' }, { reasoning_content => 'r0 ' },
         { content => 'w0 ' }, { content => 'w1 ' }, {}], "deltas of choice $i";
    is_deeply [map { $_->{finish_reason} } @{ $by{$i} }],
        [(undef) x 4, 'stop'], "finish reasons of choice $i";
}
is scalar(grep { exists $_->{json}{usage} } @e), 0, 'no usage unless asked for';
is scalar(keys %{ { map { $_->{json}{id} => 1 } @e } }), 1, 'one id';
is_deeply shape($e[1]{json}), {
    id => 'value', object => 'value', created => 'value', model => 'value',
    choices => [{ index => 'value', delta => { reasoning_content => 'value' },
                  logprobs => undef, finish_reason => undef }] },
    'shape of a chunk';

for my $path ('chat/completions', 'completions') {
    @e = events("/v1/$path", { stream => $true, prompt => 'mock tokens=2',
        messages => [{ role => 'user', content => 'mock tokens=2' }],
        stream_options => { include_usage => $true } });
    is_deeply shape($e[-2]{json}{usage}), $usage, "$path: usage at the end";
    is_deeply $e[-2]{json}{choices}, [], "$path: without choices";
    ok !(grep { !exists $_->{json}{usage} || defined $_->{json}{usage} }
         @e[0 .. $#e - 2]), "$path: null in all others";
}

@e = events('/v1/completions', { prompt => 'mock tokens=2', stream => $true,
                                 logprobs => 1 });
is_deeply [map { $_->{json}{choices}[0]{text} } @e[0 .. 2]],
          ['w0 ', 'w1 ', ''], 'completions: texts';
is_deeply [map { $_->{json}{choices}[0]{logprobs}{text_offset} } @e[0, 1]],
          [[0], [3]], 'completions: offsets go on';

my $odd = "\"\\/\x{8}\x{c}\n\r\t\x{1}\x{1f}\x{7f}\x{80}\x{2028}\x{2029}"
          . "\x{ffff}\x{10ffff}<b>";
for my $stream ($true, $false) {
    my $body = { prompt => "$odd mock echo", stream => $stream,
                 max_tokens => 4096 };
    my $got = $stream ? $moe->stream('/v1/completions', $body)->collect->{content}
                      : said($moe->post('/v1/completions', $body));
    is $got, "$odd mock echo", 'odd characters come back, ' .
       ($stream ? 'streamed' : 'whole');
}
is $moe->stream('/v1/chat/completions', { stream => $true, messages =>
       [{ role => 'user', content => 'mock split_utf8 tokens=3 logprobs' }] })
       ->collect->{done}, 1, 'tokens that end inside a character';

$moe->done;
