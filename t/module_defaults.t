# What holds with no directive set, and the two directives beside the defaults:
# moe_cors and moe_header_delay; errors in OpenAI's form, whoever makes them.

use strict;
use warnings;

use Test::More;

use Moe;

*chat = \&Moe::chat;

my $moe = Moe->new;

sub conf_error {
    my ($like, $name, %o) = @_;
    my ($ok, $said) = $moe->test_conf(%o);
    ok !$ok && $said =~ $like, "refused: $name" or diag $said;
}

conf_error(qr/"moe_cors" directive is duplicate/, 'moe_cors twice',
           location => 'moe_cors on; moe_cors off;');
conf_error(qr/invalid origin "example.org"/, 'an origin without a scheme',
           location => 'moe_cors example.org;');
conf_error(qr/invalid origin "https:\/\/a\/"/, 'an origin with a path',
           location => 'moe_cors https://a/;');
conf_error(qr/"moe_header_delay" directive invalid value/, 'a delay',
           location => 'moe_header_delay x;');

$moe->mock;
$moe->nginx(engine => 'ping 50ms; queue_timeout 700ms;', server => <<'CONF',
    location /cors/ { moe_pass main; moe_cors on; }
    location /mine/ {
        moe_pass main;
        moe_cors https://a.example http://localhost:3000;
        auth_basic x;
        auth_basic_user_file none;
    }
    location /soon/ { moe_pass main; moe_header_delay 100ms; }
    location /other/ {
        moe_pass main;
        moe_header_delay 10s;
        error_page 503 =200 @other;
    }
    location @other { return 200 elsewhere; }
    location /cloud/ {
        moe_pass gone;
        error_page 503 = @cloud;
        access_log %%DIR%%/trace.log trace;
    }
    location @cloud {
        proxy_pass http://127.0.0.1:$server_port/echo;
        proxy_set_header traceparent $moe_traceparent;
        proxy_set_header tracestate $moe_tracestate;
        access_log %%DIR%%/trace.log trace;
    }
    location = /echo { return 200 "$http_traceparent|$http_tracestate"; }
    location = /any { return 200 "$moe_traceparent $moe_trace_id"; }
    location /one/ { moe_pass main; limit_req zone=one; limit_req_status 429; }
    location /denied/ { moe_pass main; deny all; }
    client_header_buffer_size 1k;
    large_client_header_buffers 2 1k;
CONF
    http => 'limit_req_zone $server_addr zone=one:32k rate=1r/m;
             moe_engine gone { socket unix:%%DIR%%/gone; }
             log_format trace "$moe_traceparent $moe_trace_id '
            . '<$moe_tracestate>";');
$moe->wait_ready;
my ($worker) = $moe->workers;


# -- errors ----------------------------------------------------------------

sub error_of {
    my ($r, $status, $type, $name) = @_;
    is $r->{status}, $status, "$name: $status";
    is $r->{headers}{'content-type'}, 'application/json', "$name: JSON";
    is $r->{json}{error}{type} // $r->{body}, $type, "$name: $type";
}

error_of($moe->get('/v1/nothing'), 404, 'invalid_request_error', 'no endpoint');
error_of($moe->get('/v1/chat/completions'), 405, 'invalid_request_error',
         'a wrong method');
error_of($moe->post('/v1/chat/completions', '{'), 400, 'invalid_request_error',
         'broken JSON');
$moe->post('/one/chat/completions', (chat('tokens=1'))[1]);
error_of($moe->post('/one/chat/completions', '{}'), 429, 'rate_limit_error',
         'limit_req');
error_of($moe->get('/denied/models'), 403, 'permission_error', 'deny');

my $c = $moe->client;
$c->{method} = 'POST';
$c->send("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
         . "Content-Length: 33554433\r\n\r\n");
error_of($c->response, 413, 'invalid_request_error', 'over 32 MiB');
$c = $moe->client;
$c->{method} = 'POST';
$c->send("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
         . "Transfer-Encoding: chunked\r\n\r\nx\r\n");
error_of($c->response, 400, 'invalid_request_error', 'broken chunks');


# -- request id ------------------------------------------------------------

my $r;
is $moe->stream(chat('tokens=1'), 'X-Request-ID' => 'abc-123')
       ->{headers}{'x-request-id'}, 'abc-123',
   "the client's request id comes back";
like $moe->stream(chat('tokens=1'))->{headers}{'x-request-id'},
     qr/^chatcmpl-[0-9a-f]{32}$/, 'or one is made';
like $moe->stream(chat('tokens=1'), 'X-Request-ID' => "a b")
         ->{headers}{'x-request-id'}, qr/^chatcmpl-/,
     'also where the client had none that can be sent';


# -- trace context ---------------------------------------------------------

my $t = '4bf92f3577b34da6a3ce929d0e0e4736';
my $s = '00f067aa0ba902b7';
my $hex = qr/[0-9a-f]/;

# What the engine has had, and the traceresponse.
sub traced {
    my (%headers) = @_;
    my ($path, $body) = chat('dump');
    delete $body->{stream};
    my $r = $moe->post($path, $body, %headers);
    my ($id, @trace) = $r->{json}{choices}[0]{message}{content}
        =~ / id=($hex{32}) trace=($hex{32})-($hex{16})-($hex{2})/;
    is $r->{json}{id}, "chatcmpl-$id", 'the engine has the id';
    return ($r->{headers}{traceresponse} // '', @trace);
}

{
    my ($back, @got) = traced(traceparent => "00-$t-$s-01");
    is $got[0], $t, 'the trace goes on in the engine';
    isnt $got[1], $s, 'with a new span';
    is $got[2], '01', 'and is sampled as before';
    is $back, "00-$t-$got[1]-01", 'traceresponse has the span';
    is((traced(traceparent => "00-$t-$s-ff"))[3], '03',
       'flags that are not known are not passed on');
    is((traced(traceparent => "cc-$t-$s-01-more"))[1], $t,
       'a later version may have more');
    is((traced(traceparent => "cc-$t-$s-00"))[1], $t, 'or not');

    my %seen;
    my @bad = ("00-$t-$s", "00-$t-$s-01-more", "00-$t-$s-01-", "ff-$t-$s-01",
               "0-$t-$s-001", "00-\U$t\E-$s-01", "00-$t-\U$s\E-01",
               '00-' . 0 x 32 . "-$s-01", "00-$t-" . 0 x 16 . '-01',
               "00_$t-$s-01", "00-$t-$s-0g", "cc-$t-$s-01more", 'x' x 55, 'x',
               "00-$t-$s-01\r\ntraceparent: 00-$t-$s-01");
    for (@bad) {
        my ($back, @new) = traced(traceparent => $_);
        ok $new[0] ne $t && !$seen{ $new[0] }++ && $new[2] eq '02'
           && $back eq join('-', '00', @new), 'a new trace for one that is none'
            or diag "$_: $back, @new";
    }
    ($back, @got) = traced();
    is $back, '', 'no traceresponse for who does not trace';
    like $got[0], qr/^(?!0{32})/, 'who has a trace all the same';
    isnt((traced())[1], $got[0], 'of its own');
}

# An error, and where an error_page leads.
like $moe->post('/v1/chat/completions', '{', traceparent => "00-$t-$s-00")
         ->{headers}{traceresponse}, qr/^00-$t-$hex{16}-00$/, 'an error has it';

sub elsewhere {
    my (%headers) = @_;
    my ($path, $body) = chat('tokens=1');
    my $r = $moe->post($path =~ s/v1/cloud/r, $body, %headers);
    return split /\|/, $r->{body}, 2;
}

{
    my ($parent, $state) = elsewhere(traceparent => "00-$t-$s-01",
                                     tracestate => 'a=1,b@c=2');
    like $parent, qr/^00-$t-(?!$s)$hex{16}-01$/,
         'to another cluster: the trace';
    is $state, 'a=1,b@c=2', 'and its state';
    my ($line) = reverse split /\n/, Moe::slurp("$moe->{dir}/trace.log");
    is $line, "$parent $t <a=1,b\@c=2>", 'the log has them';

    ($parent, $state) = elsewhere(tracestate => 'a=1');
    like $parent, qr/^00-$hex{32}-$hex{16}-02$/, 'without one: a new one';
    is $state, '', 'whose state is not the old one';

    my @states = (["a=1\r\ntracestate: b=2", 'a=1,b=2'], ['a=1 ,', 'a=1 ,'],
                  [join(',', map { "k$_=v" } 1 .. 32)],
                  [join(',', map { "k$_=v" } 1 .. 33), ''], ['A=1', ''],
                  ['a', ''], ['a=', ''], ['=1', ''], ['a=b=c', ''],
                  ['-a=1', ''], ['1a_-*/@=!~', '1a_-*/@=!~'], ['a=' . 'v' x 256],
                  ['a=' . 'v' x 257, ''], ['a' x 256 . '=1'],
                  ['a' x 257 . '=1', ''], [',', ''], ["a=\xe4", ''],
                  ["a=\x7f", ''], ["a=b\tc", ''], ['a =1', ''], ['@a=1', ''],
                  ['a=1, b=2'], ["a=1\t,\tb=2"], ['a=' . 'v' x 256 . ' ,b=1'],
                  ['a=1,,b=2,'], ['a=1,b', ''],
                  [',' . join ', ,', map { "k$_=v" } 1 .. 32],
                  ["a=1\r\ntracestate: b=2\r\ntracestate: c", '']);
    for (@states) {
        my ($sent, $want) = @$_;
        my $got = (elsewhere(traceparent => "00-$t-$s-01",
                             tracestate => $sent))[1];
        is $got, $want // $sent, 'a state that is passed on, or is none: '
                                 . substr $sent, 0, 20;
    }
}
like $moe->get('/any')->{body}, qr/^00-($hex{32})-$hex{16}-02 \1$/,
     'the variables are there in any location';


# -- CORS ------------------------------------------------------------------

my @ask = ('Access-Control-Request-Method' => 'POST',
           'Access-Control-Request-Headers' => 'authorization,x-stainless-os');

sub preflight {
    my ($where, $origin) = @_;
    return $moe->client->request('OPTIONS', "/$where/chat/completions", undef,
                                 Origin => $origin, @ask)->response;
}

$r = preflight('cors', 'https://a.example');
is $r->{status}, 204, 'preflight: 204';
is $r->{headers}{'access-control-allow-origin'}, '*', 'for any origin';
is $r->{headers}{'access-control-allow-headers'},
   'authorization,x-stainless-os', 'with the headers that were asked for';
like $r->{headers}{'access-control-allow-methods'}, qr/POST/, 'and POST';
$c = $moe->stream('/cors/chat/completions', (chat('tokens=1'))[1],
                  Origin => 'https://a.example');
is $c->{headers}{'access-control-allow-origin'}, '*', 'a stream';
like $c->{headers}{'access-control-expose-headers'}, qr/Retry-After/,
     'shows its headers';
$r = $moe->post('/cors/chat/completions', '{', Origin => 'https://a.example');
is $r->{status}, 400, 'an error';
is $r->{headers}{'access-control-allow-origin'}, '*', 'has it too';
$r = $moe->get('/cors/models');
ok !exists $r->{headers}{'access-control-allow-origin'},
   'nothing for who has no Origin';

$r = preflight('mine', 'https://a.example');
is $r->{status}, 204, 'a preflight is not asked for a password';
is $r->{headers}{'access-control-allow-origin'}, 'https://a.example',
   'a listed origin';
is $r->{headers}{vary}, 'Origin', 'with Vary';
is $r->{headers}{'access-control-allow-credentials'}, 'true',
   'and credentials';
$r = $moe->get('/mine/models', Origin => 'http://localhost:3000');
is $r->{status}, 401, 'the request itself is';
is $r->{headers}{'access-control-allow-origin'}, 'http://localhost:3000',
   'and the page may read that';
$r = preflight('mine', 'https://evil.example');
ok !exists $r->{headers}{'access-control-allow-origin'}, 'another origin';
$r = preflight('v1', 'https://a.example');
is $r->{status}, 405, 'without moe_cors a preflight is nothing special';
ok !exists $r->{headers}{'access-control-allow-origin'}, 'and gets nothing';


# -- moe_header_delay ------------------------------------------------------

# Nothing for 400 ms: the header and pings come all the same.
$r = $moe->stream('/soon/chat/completions',
                  (chat('tokens=1 prefill_ms=400'))[1])->collect;
is $r->{content}, 'w0 ', 'a long prefill';
cmp_ok $r->{n_comments}, '>', 1, 'is bridged by pings';
ok defined $r->{events}[0]{comment}, 'which come first';

# After the header an error is an event, before it a status, or error_page's.
$c = $moe->stream('/soon/chat/completions', (chat('prefill_ms=60000'))[1]);
is $c->{status}, 200, 'the header has gone';
$r = $c->collect;
is $r->{error}{code}, 'queue_timeout', 'so the error is an event';
ok $r->{done}, 'and [DONE]';
$r = $moe->post(chat('prefill_ms=60000'));
is $r->{status}, 503, 'the header was held back: 503';
$r = $moe->post('/other/chat/completions', (chat('prefill_ms=60000'))[1]);
is $r->{body}, 'elsewhere', 'and error_page can take it';


# -- TCP -------------------------------------------------------------------

SKIP: {
    my $strace = Moe::find('strace') or skip 'no strace', 3;
    my $file = "$moe->{dir}/strace";
    my $pid = $moe->spawn('strace.out', $strace, '-p', $worker, '-o', $file,
                          '-e', 'trace=setsockopt,close,getsockname');
    my $attached = eval {
        $moe->until('strace', sub {
            $moe->get('/health');
            die 'gone' if defined $moe->ended($pid);
            -s $file;
        });
    } or skip 'strace cannot attach', 3;
    my $c = $moe->stream(chat('tokens=3'));
    is $c->collect->{n_events}, 3, 'a stream on a new connection';
    kill 'INT', $pid;
    $moe->await_exit('strace', $pid);
    my $log = Moe::slurp($file);
    like $log, qr/TCP_NODELAY, \[1\]/, 'TCP_NODELAY is set';
    like $log, qr/TCP_USER_TIMEOUT, \[60000\]/, 'and TCP_USER_TIMEOUT';
}

$moe->allow_log(qr/client intended to send too large (?:chunked )?body/,
                qr/limiting requests/, qr/access forbidden/,
                qr/client sent invalid chunked body/, qr/no user\/password/,
                qr/open\(\).*none/);
$moe->done;
