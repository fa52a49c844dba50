# Engines that are absent, die and come back: 503 with Retry-After at once, a
# well-formed error in a stream that has begun and may not wait for an engine
# (e2e_resume.t: those that may), another location by error_page,
# and everything as before when the engine is there again.

use strict;
use warnings;

use JSON::PP ();
use Test::More;

use Moe;

my $true = JSON::PP::true;
my ($moe, $mode, $question, %long);

sub body {
    return { messages => [{ role => 'user', content => $question }],
             max_tokens => 100, @_ };
}

sub absent {
    for my $stream (JSON::PP::false, $true) {
        my $r = $moe->post('/v1/chat/completions', body(stream => $stream));
        is($r->{status}, 503, "$mode, absent: 503");
        like($r->{headers}{'retry-after'}, qr/^\d+$/,
             "$mode, absent: Retry-After");
        ok($r->{json}{error}{message}, "$mode, absent: an error in JSON");
    }
    is($moe->get('/health')->{status}, 503, "$mode, absent: /health");
    is($moe->get('/v1/models')->{status}, 503, "$mode, absent: /v1/models");
    is($moe->post('/other/v1/chat/completions', body())->{body},
       '{"from":"another place"}', "$mode, absent: error_page goes elsewhere");
    is($moe->post('/v1/chat/completions', '{"messages":1}')->{status}, 400,
       "$mode, absent: a bad request is refused all the same");
}

sub killed {
    my @s = map { $moe->stream('/v1/chat/completions',
                               body(stream => $true, %long)) } 1 .. 3;
    $_->event for @s, @s;
    my $whole = $moe->client->request('POST', '/v1/chat/completions',
                                      body(%long));
    $moe->until('the jobs', sub { $moe->busy >= 4 });
    $moe->kill_engine;
    for my $s (@s) {
        my $r = $s->collect;
        ok($r->{error}{message}, "$mode, killed: an error event");
        ok(!$s->{truncated}, "$mode, killed: the response is whole");
        ok(!defined $r->{finish}, "$mode, killed: no finish reason");
    }
    my $r = $whole->response;
    is($r->{status}, 503, "$mode, killed: 503 where nothing was sent");
    ok($r->{json}{error}{message}, "$mode, killed: in JSON");
    is($moe->get('/health')->{status}, 503, "$mode, killed: /health");
}

for (qw(mock model)) {
    $mode = $_;
    SKIP: {
        skip 'the engine or the demo model is not built', 1
            if $mode eq 'model' && !Moe->can_engine;
        $moe = Moe->new;
        ($question, %long) = $mode eq 'mock'
            ? ('mock tokens=100000 delay_ms=5', max_tokens => 100000)
            : ('What is 347 + 285?', max_tokens => 1000, ignore_eos => $true);

        # An engine's absence and its end are worth a line of error.log.
        $moe->allow_log(qr/moe/);
        $moe->nginx(engine => 'resume_timeout 0;', server => <<'CONF');
            location /other/v1/ {
                rewrite ^/other(/.*) $1 break;
                moe_pass main;
                error_page 503 = @other;
            }
            location @other {
                default_type application/json;
                return 200 '{"from":"another place"}';
            }
CONF
        absent();
        $mode eq 'mock' ? $moe->mock('--quiet') : $moe->engine;
        $moe->wait_ready;
        killed();

        $moe->restart_engine;
        $moe->wait_ready;
        $question = 'mock tokens=5' if $mode eq 'mock';
        is($moe->post('/v1/chat/completions', body())->{status}, 200,
           "$mode, back: answers");
        ok(!$moe->busy, "$mode, back: no job is left");
        $moe->stop;
    }
}

done_testing();
