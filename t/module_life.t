# The life of requests and of the channel: every request ends exactly once,
# whoever leaves first, and nothing is left over.

use strict;
use warnings;

use Socket qw(AF_UNIX SOCK_SEQPACKET pack_sockaddr_un);
use Test::More;
use Time::HiRes ();

use Moe;

*chat = \&Moe::chat;

sub whole { my ($path, $body) = chat(@_); delete $body->{stream};
            return ($path, $body) }

my $moe = Moe->new;

sub worker { return $moe->get('/health')->{json}{worker} // {} }

# All that was accepted has ended; returns the counters.
sub settled {
    my $w;
    $moe->until('end of all requests', sub { $w = worker(); !$w->{open} });
    is $w->{accepted}, $w->{done} + $w->{error} + $w->{cancelled},
       "accepted $w->{accepted} = $w->{done} done + $w->{error} error"
       . " + $w->{cancelled} cancelled";
    return $w;
}

my %conf = (
    engine => 'resume_timeout 0;',
    http => <<'CONF',
    log_format moe '$status|$moe_model|$moe_engine|$moe_prompt_tokens|'
                   '$moe_completion_tokens|$moe_finish_reason|'
                   '$moe_first_token_time|$moe_queue_time';
    moe_engine quick {
        socket %%SOCKET%%;
        queue_timeout 1s;
        first_token_timeout 1200ms;
        token_timeout 1400ms;
        resume_timeout 0;
    }
    moe_engine short { socket %%SOCKET%%; request_timeout 500ms; streams 2; }
    moe_engine none { socket unix:%%DIR%%/no.sock; }
    limit_req_zone $server_addr zone=one:32k rate=1r/m;
CONF
    server => <<'CONF',
    access_log %%DIR%%/moe.log moe;
    location /quick/ { moe_pass quick; }
    location /short/ { moe_pass short; }
    location /none/ { moe_pass none; }
    location /limited/ { moe_pass main; limit_req zone=one; }
    location /other/ { moe_pass none; error_page 503 = @other; }
    location @other { add_header X-Other $moe_engine always;
                      return 200 elsewhere; }
    location = /none-health { moe_health none; }
CONF
);
$moe->mock;
$moe->nginx(%conf);
$moe->wait_ready;
my ($worker) = $moe->workers;


# -- limits ----------------------------------------------------------------

sub error_of {
    my ($r, $status, $code, $name) = @_;
    is $r->{status}, $status, "$name: $status";
    is $r->{json}{error}{code} // 'none', $code, "$name: $code"
        or diag $r->{body};
    ok !!$r->{headers}{'retry-after'} == ($status =~ /^(?:429|503)$/),
       "$name: Retry-After";
}

sub at { my ($where, $path, $body) = @_; return ($path =~ s{/v1}{$where}r, $body) }

error_of($moe->post(at('/quick', whole('prefill_ms=5000'))), 503,
         'queue_timeout', 'no START in time');
error_of($moe->post(at('/quick', whole('tokens=5 at=0 stall'))), 504,
         'first_token_timeout', 'no token in time');
error_of($moe->post(at('/quick', whole('tokens=5 at=2 stall'))), 504,
         'token_timeout', 'no other token in time');
error_of($moe->post(at('/short', whole('tokens=50 delay_ms=50'))), 504,
         'request_timeout', 'not done in time');
my $r = $moe->stream(at('/quick', chat('tokens=5 at=2 delay_ms=50 stall')))->collect;
is $r->{content}, 'w0 w1 ', 'what came before the timeout';
is $r->{error}{code}, 'token_timeout', 'an error event';
ok $r->{done}, 'and [DONE]';

for (['invalid', 400, 'invalid_value'],
     ['context', 400, 'context_length_exceeded'],
     ['busy', 429, 'engine_overloaded'],
     ['unavailable', 503, 'engine_unavailable'],
     ['internal', 500, 'internal_error'],
     ['deadline', 504, 'deadline_exceeded']) {
    my ($kind, $status, $code) = @$_;
    error_of($moe->post(whole("error=$kind")), $status, $code, "ERROR $kind");
    my $c = $moe->client->request('POST', chat("error=$kind"));
    is $c->response->{status}, $status, "ERROR $kind of a stream: status";
    $r = $moe->stream(chat("tokens=4 at=2 delay_ms=50 error=$kind"))->collect;
    is $r->{content}, 'w0 w1 ', "ERROR $kind in a stream: what came before";
    is $r->{error}{code}, $code, "ERROR $kind in a stream: its code";
    ok $r->{done}, "ERROR $kind in a stream: [DONE]";
}

my @two = map { $moe->stream(at('/short', chat('tokens=9 delay_ms=30'))) } 1, 2;
error_of($moe->post(at('/short', whole('tokens=1'))), 429, 'engine_overloaded',
         'no slot left');
$_->collect for @two;

$moe->post(at('/limited', whole('tokens=1')));
$r = $moe->post(at('/limited', whole('tokens=1')));
is $r->{status}, 503, "limit_req's refusal";
is $r->{json}{error}{type}, 'server_error', 'is JSON too';

error_of($moe->post(at('/none', whole(''))), 503, 'engine_unavailable',
         'no engine');
error_of($moe->get('/none/models'), 503, 'engine_unavailable',
         'models of no engine');
is $moe->get('/none-health')->{status}, 503, 'health of no engine';
is $moe->get('/none-health')->{json}{status}, 'unavailable', 'says so';
$r = $moe->post(at('/other', whole('')));
is $r->{body}, 'elsewhere', 'error_page 503 takes the request elsewhere';
is $r->{headers}{'x-other'}, 'none', 'and variables are still known';
ok !$r->{headers}{'retry-after'}, 'without a trace of the 503';


# -- clients that leave ----------------------------------------------------

for my $hard (0, 1) {
    for ('prefill_ms=60000', 'tokens=5000 delay_ms=10', 'at=1 stall tokens=9') {
        my $c = $moe->client->request('POST', chat($_));
        $moe->until('the request', sub { worker()->{open} == 1 });
        $c->close(hard => $hard);
        $moe->until('CANCEL', sub { worker()->{open} == 0 });
        $c = $moe->client->request('POST', whole($_));
        $moe->until('the request', sub { worker()->{open} == 1 });
        $c->close(hard => $hard);
        $moe->until('CANCEL', sub { worker()->{open} == 0 });
        pass "cancelled: $_" . ($hard ? ', by a reset' : '');
    }
}

# 1,000 of them, in every state, 50 at a time; no descriptor, no slot is lost.
my $fds = $moe->fds($worker);
my $before = settled();
srand 1;
for my $round (1 .. 20) {
    my @c = map { $moe->client->request('POST', (rand() < 0.5 ? \&chat : \&whole)
                  ->('tokens=40 delay_ms=1 prefill_ms=' . int rand 20)) } 1 .. 50;
    Time::HiRes::sleep(rand 0.03);
    for my $c (@c) {
        $c->fill('anything') if rand() < 0.3;
        $c->close(hard => rand() < 0.5);
    }
}
my $after = settled();
cmp_ok $after->{accepted} - $before->{accepted}, '>', 300,
       'requests were aborted in the middle';
$moe->until('the descriptors of before', sub { $moe->fds($worker) <= $fds });
pass 'no descriptor is left over';
$r = $moe->stream(chat('tokens=3'))->collect;
is $r->{content}, 'w0 w1 w2 ', 'and all is well';


# -- reload and upgrade ----------------------------------------------------

my @live = map { $moe->stream(chat('tokens=60 delay_ms=20')) } 1 .. 3;
$_->event for @live;
$moe->reload;
is $moe->stream(chat('tokens=2'))->collect->{content}, 'w0 w1 ',
   'a new worker has its channel at once';
for my $c (@live) {
    $r = $c->collect;
    ok $r->{done} && $r->{n_events} == 60, 'a stream survives the reload';
}
$moe->until('end of the old worker', sub { !kill 0, $worker });

@live = map { $moe->stream(chat('tokens=60 delay_ms=20')) } 1 .. 3;
my $old = $moe->upgrade;
is $moe->stream(chat('tokens=2'))->collect->{content}, 'w0 w1 ',
   'the new binary serves';
ok $_->collect->{done}, 'a stream survives the upgrade' for @live;
$moe->await_exit('the old master', $old);

# No request falls into the gap between fork and handshake.
my @status;
for (1 .. 5) {
    kill 'HUP', $moe->{master};
    push @status, map { $moe->post(whole('tokens=1'))->{status} } 1 .. 20;
}
is scalar(grep { $_ != 200 } @status), 0, '100 requests during 5 reloads';
# One that is about to leave may still take a request: after this one, none.
$moe->reload;
$moe->until('end of the old workers', sub {
    1 == (my @w = Moe::children($moe->{master}))
});


# -- engines that leave ----------------------------------------------------

kill 'USR1', $moe->{engine};
$moe->until('draining', sub {
    ($moe->get('/health')->{json}{status} // '') eq 'draining' });
error_of($moe->post(whole('tokens=1')), 503, 'engine_unavailable',
         'an engine that drains');
is $moe->get('/health')->{status}, 503, 'is not healthy';
kill 'USR1', $moe->{engine};
$moe->wait_ready;

my $c = $moe->stream(chat('tokens=1000 delay_ms=10'));
$c->event for 1 .. 3;
my $waiting = $moe->client->request('POST', whole('prefill_ms=60000'));
$moe->until('both', sub { worker()->{open} == 2 });
$moe->kill_engine;
$r = $c->collect;
is $r->{error}{code}, 'engine_unavailable', 'a killed engine: an error event';
ok $r->{done}, 'a killed engine: [DONE]';
error_of($waiting->response, 503, 'engine_unavailable',
         'a killed engine, nothing sent');
error_of($moe->post(whole('tokens=1')), 503, 'engine_unavailable',
         'until it is back');
$moe->restart_engine;
$moe->wait_ready;
is $moe->stream(chat('tokens=2'))->collect->{content}, 'w0 w1 ',
   'the next engine is found without a reload';
settled();

# Another one listens when the engine is lost: whoever asks as soon as that is
# known is not refused.
for my $round (1 .. 3) {
    Time::HiRes::sleep(1.1);            # at once, but once a second at most
    my $gone = delete $moe->{engine};
    my $path = "$moe->{dir}/$moe->{socket}";
    unlink $path;
    $moe->restart_engine;
    $moe->until('the successor', sub {
        my $s;
        socket($s, AF_UNIX, SOCK_SEQPACKET, 0)
            && connect($s, pack_sockaddr_un($path)) });
    $c = $moe->stream(chat('tokens=1000 delay_ms=10'));
    $c->event;
    kill 'KILL', $gone;
    ok $c->collect->{error}, "round $round: its engine was lost";
    is $moe->post(whole('tokens=1'))->{status}, 200, 'the next one has it';
    $moe->await_exit('the old engine', $gone);
}


# -- the log ---------------------------------------------------------------

$moe->stop_nginx;
my $log = Moe::slurp("$moe->{dir}/moe.log");
like $log, qr/^200\|mock\|main\|\d+\|40\|length\|0\.\d{3}\|0\.\d{6}$
              |^200\|mock\|main\|\d+\|3\|stop\|0\.\d{3}\|\d\.\d{6}$/mx,
     'variables of a request that was done';
like $log, qr/^499\|mock\|main\|\d+\|\d+\|cancelled\|/m, 'of an aborted one';
like $log, qr/^499\|mock\|main\|-\|-\|cancelled\|-\|-$/m,
     'of one that was aborted before it began';
like $log, qr/^503\|-\|none\|-\|-\|error\|-\|-$/m, 'of one without engine';
like $log, qr/^200\|-\|none\|-\|-\|error\|-\|-$/m, 'of one that went elsewhere';
like $log, qr/^200\|mock\|quick\|\d+\|2\|error\|/m, 'of one that timed out';

$moe->allow_log(qr/the engine is gone/, qr/limiting requests/);
$moe->done;
