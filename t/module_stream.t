# Streams: one event a token as it comes, compressed or not, over HTTP/1.1 and
# HTTP/2; pings while a prompt is read; bodies of any size and framing; clients
# that do not read.

use strict;
use warnings;

use JSON::PP ();
use Test::More;
use Time::HiRes ();

use Moe;

*chat = \&Moe::chat;

my $moe = Moe->new;
$moe->mock;
$moe->nginx(engine => 'ping 50ms;', server => <<'CONF');
    location /gzip/ {
        moe_pass main;
        gzip on;
        gzip_types text/event-stream application/json;
        gzip_min_length 1;
        gzip_proxied any;
    }
    location /file/ {
        moe_pass main;
        client_body_buffer_size 1k;
        client_body_in_file_only clean;
    }
    location /send/ { moe_pass main; send_timeout 1s; }
    location /small/ { moe_pass main; client_max_body_size 1k; }
    location /ssi/ { ssi on; ssi_types *; root %%DIR%%; }
CONF
$moe->wait_ready;


# -- the smallest windows --------------------------------------------------

# With so many streams a window is one long event and little more: the short one
# before it must not hold its place.
my $many = Moe->new;
$many->mock;
$many->nginx(engine => 'streams 12900;');
$many->wait_ready;
my $all = $many->stream(chat('reasoning=1 tokens=9 chunk=3 bytes=1000'))
               ->collect;
is $all->{n_events}, 4, 'long events in a small window: all came';
ok $all->{done} && length($all->{content}) == 9 * 1000, 'and were whole';
$many->stop;


# -- one event a token -----------------------------------------------------

# Each token is 40 ms after the one before: it must come alone.
for my $where ('/v1', '/gzip') {
    my ($path, $body) = chat('tokens=6 delay_ms=40');
    $path =~ s{/v1}{$where};
    my $c = $moe->stream($path, $body, $where eq '/gzip'
                         ? ('Accept-Encoding' => 'gzip') : ());
    is $c->{headers}{'content-type'}, 'text/event-stream', "$where: type";
    is $c->{headers}{'cache-control'}, 'no-cache, no-transform',
       "$where: cache-control";
    is $c->{headers}{'x-accel-buffering'}, 'no', "$where: x-accel-buffering";
    is $c->{headers}{'content-encoding'} // '',
       $where eq '/gzip' ? 'gzip' : '', "$where: content-encoding";
    my $r = $c->collect;
    is $r->{content}, join('', map { "w$_ " } 0 .. 5), "$where: content";
    is $r->{n_events}, 6, "$where: one event a token";
    my %pieces = map { $_->{n} => 1 }
                 grep { ($_->{json}{choices}[0]{delta}{content} // '') ne '' }
                 grep { $_->{json} } @{ $r->{events} };
    is scalar(keys %pieces), 6, "$where: each in a piece of its own";
    ok $r->{done}, "$where: [DONE]";
}

# Compressed, a stream has a tenth of the bytes, and no token waits for another.
my %bytes;
for my $where ('/v1', '/gzip') {
    my ($path, $body) = chat('tokens=300 delay_ms=5');
    my $c = $moe->stream($path =~ s{/v1}{$where}r, $body,
                         'Accept-Encoding' => 'gzip');
    is $c->collect->{n_events}, 300, "$where: all tokens of a long stream";
    $bytes{$where} = $c->{n_bytes};
}
cmp_ok $bytes{'/v1'}, '>=', 10 * $bytes{'/gzip'},
    "gzip: $bytes{'/gzip'} bytes for $bytes{'/v1'}";

my $c = $moe->client;
for (1 .. 3) {
    my $r = $c->request('POST', chat('tokens=2'))->head->collect;
    is $r->{content}, 'w0 w1 ', "keep-alive, stream $_";
}


# -- pings -----------------------------------------------------------------

# A prompt that takes long: START comes after the prefill here, so the header
# is held; a pause between tokens brings pings.
my $r = $moe->stream(chat('tokens=2 delay_ms=400'))->collect;
is $r->{content}, 'w0 w1 ', 'a slow stream is whole';
cmp_ok $r->{n_comments}, '>', 0, 'and has pings in its pauses';
is +(grep { defined $_->{comment} } @{ $r->{events} })[0]{comment}, 'ping',
   'which say so';


# -- HTTP/2 ----------------------------------------------------------------

SKIP: {
    my $curl = Moe::find('curl') or skip 'no curl', 3;
    `$curl --version` =~ /HTTP2/ or skip 'curl without HTTP/2', 3;
    my ($path, $body) = chat('tokens=5 delay_ms=20');
    my $url = 'http://127.0.0.1:' . $moe->port('h2') . $path;
    my $json = JSON::PP::encode_json($body);
    my $out = `$curl -sN -i --http2-prior-knowledge $url -d '$json'`;
    like $out, qr/^HTTP\/2 200/, 'HTTP/2: status';
    is scalar(() = $out =~ /"content":"w\d /g), 5, 'HTTP/2: five tokens';
    like $out, qr/data: \[DONE\]\n\n\z/, 'HTTP/2: [DONE]';
}

# Many streams on one connection, of which one is reset in the middle.
SKIP: {
    my $h2load = Moe::find('h2load') or skip 'no h2load', 1;
    my ($path, $body) = chat('tokens=20 delay_ms=2');
    my $file = $moe->write('body.json', JSON::PP::encode_json($body));
    my $out = `$h2load -n 100 -c 2 -m 50 -d $file http://127.0.0.1:@{[
               $moe->port('h2') ]}$path 2>&1`;
    like $out, qr/100 succeeded, 0 failed/, 'HTTP/2: 50 streams a connection';
}


# -- bodies ----------------------------------------------------------------

# JSON::PP is slow: what is long is written by hand.
my $long = 'x' x (4 << 20);

sub text {
    my ($prefix, $prompt) = @_;
    return ("$prefix/completions", qq({"prompt":"$prompt"}));
}

for my $where ('/v1', '/file') {
    my $r = $moe->post(text($where, "$long mock dump"));
    like $r->{json}{choices}[0]{text}, qr/n_body=4194314\b/,
         "4 MiB prompt by $where";
}
$r = $moe->post('/v1/chat/completions', qq({"messages":[)
    . qq({"role":"user","content":"$long"},)
    . qq({"role":"user","content":"mock dump"}]}));
like $r->{json}{choices}[0]{message}{content}, qr/n_body=41943\d\d\b/,
     '4 MiB of messages';

# Several at once go through the ring one after another, and small ones as well.
my @many = map { $moe->client->request('POST',
                 text('/v1', ($_ % 2 ? $long : '') . ' mock tokens=2')) } 1 .. 8;
is join(' ', map { $_->response->{status} } @many), join(' ', (200) x 8),
   'large and small prompts at once';

for my $where ('/v1', '/file') {
    my $body = (text('', 'mock tokens=3'))[1];
    $c = $moe->client;
    $c->{method} = 'POST';
    $c->send("POST $where/completions HTTP/1.1\r\nHost: x\r\n"
             . "Transfer-Encoding: chunked\r\n\r\n");
    for my $piece ($body =~ /(.{1,7})/gs) {
        $c->send(sprintf "%x\r\n%s\r\n", length $piece, $piece);
        Time::HiRes::sleep(0.002);
    }
    $c->send("0\r\n\r\n");
    is $c->response->{json}{choices}[0]{text}, 'w0 w1 w2 ',
       "a chunked body in small pieces by $where";
}

$r = $moe->post(text('/small', 'x' x 2000));
is $r->{status}, 413, 'a body over client_max_body_size';
is $r->{json}{error}{type}, 'invalid_request_error', 'its error is JSON';
like $r->{json}{error}{message}, qr/too large/, 'and says so';


# -- clients that do not read ----------------------------------------------

# 8,000 tokens are 10 MB of events, more than sockets hold: the stream
# waits for its reader, another one does not.
my @slow = map { $moe->client(rcvbuf => 65536)
                     ->request('POST', chat('tokens=8000 bytes=1000',
                                            max_tokens => 9000)) } 1 .. 4;
Time::HiRes::sleep(0.5);
my ($worker) = $moe->workers;
my $rss = $moe->rss($worker);
is $moe->stream(chat('tokens=200'))->collect->{n_events}, 200,
   'a stream beside slow ones';
my $open = $moe->get('/health')->{json}{worker}{open};
is $open, 4, 'the slow ones wait';
Time::HiRes::sleep(0.5);
SKIP: {
    skip 'ThreadSanitizer remembers in memory what was written where', 1
        if $moe->{preload} =~ /tsan/;
    cmp_ok $moe->rss($worker) - $rss, '<', 4 << 20, 'and take no memory';
}
$c = (shift @slow)->head;
my ($n, $tail) = (0, '');
while (defined(my $piece = $c->piece)) {
    $n += () = $piece =~ /"content":"w/g;
    $tail = $piece;
}
is $n, 8000, 'a slow one is complete once it is read';
like $tail, qr/data: \[DONE\]\n\n$/, 'to the end';
$_->close for @slow;
$moe->until('end of the slow ones', sub {
    $moe->get('/health')->{json}{worker}{open} == 0;
});
pass 'the others are cancelled when their clients leave';

my ($path, $body) = chat('tokens=20000 bytes=1000', max_tokens => 200000);
$c = $moe->client(rcvbuf => 65536)
         ->request('POST', $path =~ s{/v1}{/send}r, $body);
$moe->until('start of a stream', sub {
    $moe->get('/health')->{json}{worker}{open} == 1;
});
$moe->until('send_timeout', sub {
    $moe->get('/health')->{json}{worker}{open} == 0;
});
pass 'send_timeout cancels a client that does not read at all';


# -- subrequests -----------------------------------------------------------

mkdir "$moe->{dir}/ssi";
$moe->write('ssi/page.html', '<!--# include virtual="/v1/models" -->|'
                             . '<!--# include virtual="/v1/nothing" -->|');
$r = $moe->get('/ssi/page.html');
like $r->{body}, qr/"object":"list".*\|.*\|/s, 'a subrequest';

my $w = $moe->get('/health')->{json}{worker};
is $w->{accepted}, $w->{done} + $w->{error} + $w->{cancelled},
   'every request has ended once';
is $w->{missed_wakeups}, 0, 'no wake-up was missed';

$moe->allow_log(qr/buffered to a temporary file/, qr/too large body/);
$moe->done;
