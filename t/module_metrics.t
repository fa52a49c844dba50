# moe_status: a page that Prometheus can read, whose numbers are those of what
# happened, in all workers together and across a reload; vLLM's and
# OpenTelemetry's names for them; and the variables of requests that failed.

use strict;
use warnings;

use JSON::PP ();
use Test::More;

use Moe;

*chat = \&Moe::chat;

my $moe = Moe->new;

my ($ok, $said) = $moe->test_conf(server => 'location /m { moe_status xml; }');
ok !$ok && $said =~ /invalid format "xml" in "moe_status"/,
   'refused: a format that is none';

$moe->mock;
$moe->nginx(workers => 2, server => 'location = /metrics {
                                         moe_status prometheus; }',
            http => 'moe_engine idle { socket unix:%%DIR%%/none; }');

# Each worker has its channel.
sub await_workers {
    my %pid;
    $moe->until('both workers', sub {
        my $r = $moe->get('/health');
        $pid{ $r->{json}{worker}{pid} } = 1 if $r->{status} == 200;
        keys %pid == 2;
    });
}
await_workers();

# The page, by the grammar of the format: name{labels} => value.
sub metrics {
    my $r = $moe->get('/metrics');
    is $r->{headers}{'content-type'}, 'text/plain; version=0.0.4', 'its type';
    my (%type, %value, @wrong);
    for (split /\n/, $r->{body}) {
        if (/^# TYPE (\S+) (gauge|counter|histogram)$/) {
            push @wrong, "twice: $_" if $type{$1}++;
        } elsif (/^([a-zA-Z_:][\w:]*)(\{\w+="[^"\\]*"(?:,\w+="[^"\\]*")*\}) (\S+)$/) {
            my ($name, $labels, $v) = ($1, $2, $3);
            my $family = $name =~ s/_(?:bucket|sum|count)$//r;
            push @wrong, "no type: $_" unless $type{$name} || $type{$family};
            push @wrong, "not a number: $_" unless $v =~ /^\d+(?:\.\d+)?$/;
            push @wrong, "twice: $_" if exists $value{"$name$labels"};
            $value{"$name$labels"} = $v;
        } elsif (!/^# HELP \S+ \S.*$/) {
            push @wrong, $_;
        }
    }
    is_deeply \@wrong, [], 'every line is as it should be';
    return \%value;
}

my $m = metrics();
is $m->{'moe_engines_ready{engine="main"}'}, 1, 'an engine that is there';
is $m->{'moe_engines_ready{engine="idle"}'}, 0, 'and one that is not';
is $m->{'moe_requests_total{engine="main",finish="stop"}'}, 0, 'no request yet';

# Both workers get some; ends of every kind.
$moe->stream(chat('tokens=5 delay_ms=30'))->collect for 1 .. 20;
$moe->post('/v1/completions', { prompt => 'mock tokens=9', max_tokens => 4 })
    for 1 .. 2;
$moe->post(chat('error=internal'));
my $c = $moe->stream(chat('tokens=500 delay_ms=10 reasoning=3'));
$c->event for 1 .. 30;

# The mock tells each worker of its own requests only.
$moe->until('the one that runs', sub {
    my $body = $moe->get('/metrics')->{body};
    $body =~ /^moe_requests_running\{engine="main"\} 1$/m
        && $body =~ /^vllm:num_requests_running\{model_name="mock"\} 1$/m;
});
pass 'one is running, by both names';
$c->close;
$moe->until('the end of all', sub {
    ($moe->get('/metrics')->{body} =~ /finish="cancelled"\} 1\n/) });

$m = metrics();
my %end = (stop => 20, length => 2, error => 1, cancelled => 1);
is $m->{"moe_requests_total{engine=\"main\",finish=\"$_\"}"}, $end{$_},
   "$end{$_} ended by $_" for sort keys %end;
$end{abort} = delete $end{cancelled};
is $m->{'vllm:request_success_total{model_name="mock",'
        . "finished_reason=\"$_\"}"}, $end{$_}, "by vLLM's name: $_"
   for sort keys %end;
my $out = $m->{'moe_completion_tokens_total{engine="main"}'};
cmp_ok $out, '>=', 20 * 5 + 2 * 4 + 5, 'tokens of all, also of the aborted';
is $m->{'vllm:generation_tokens_total{model_name="mock"}'}, $out,
   "by vLLM's name";
is $m->{'moe_reasoning_tokens_total{engine="main"}'}, 3, 'reasoning';
cmp_ok $m->{'moe_prompt_tokens_total{engine="main"}'}, '>', 100, 'prompts';
is $m->{"${_}_count{engine=\"main\"}"}, 24, "$_: all requests"
    for 'moe_request_seconds';
is $m->{'moe_first_token_seconds_count{engine="main"}'}, 23,
   'all but one had a first token';
is $m->{'vllm:time_to_first_token_seconds_count{model_name="mock"}'}, 23,
   "by vLLM's name";
sub otel {
    my ($name, $operation, $more) = @_;
    return $m->{"gen_ai_$name\{gen_ai_provider_name=\"ngx_moe\","
                . 'gen_ai_request_model="mock",'
                . "gen_ai_operation_name=\"$operation\"" . ($more // '')
                . '}'};
}
is otel('server_time_to_first_token_seconds_count', 'chat'), 21,
   "by OpenTelemetry's";
is otel('server_time_to_first_token_seconds_count', 'text_completion'), 2,
   'which tells chats from completions';
for (qw(server_request_duration_seconds client_operation_duration_seconds)) {
    is otel("${_}_count", 'chat'), 21, "$_: chats";
    is otel("${_}_count", 'text_completion'), 2, "$_: completions";
    is otel("${_}_count", 'chat', ',error_type="_OTHER"'), 1, "$_: an error";
    is otel("${_}_count", 'text_completion', ',error_type="_OTHER"'), undef,
       "$_: no other";
}
is $m->{'moe_inter_token_seconds_count{engine="main"}'}, $out - 23,
   'times between tokens';
my $mean = $m->{'moe_inter_token_seconds_sum{engine="main"}'}
           / $m->{'moe_inter_token_seconds_count{engine="main"}'};
cmp_ok $mean, '>', 0.008, 'which are at least those that were waited';

# Tokens of a request: of those that began, whatever their end.
my $in = $m->{'moe_prompt_tokens_total{engine="main"}'};
for (['vllm:request_prompt_tokens', 'model_name="mock"', $in, 23],
     ['moe_request_prompt_tokens', 'engine="main"', $in, 23],
     ['vllm:request_generation_tokens', 'model_name="mock"', $out, 23],
     ['moe_request_completion_tokens', 'engine="main"', $out, 23],
     ['vllm:request_params_max_tokens', 'model_name="mock"', 8, 2],
     ['vllm:request_params_n', 'model_name="mock"', 23, 23]) {
    my ($name, $labels, $sum, $count) = @$_;
    is $m->{"${name}_sum{$labels}"}, $sum, "$name: sum";
    is $m->{"${name}_count{$labels}"}, $count, "$name: count";
}
is $m->{'vllm:request_generation_tokens_bucket{model_name="mock",le="2"}'}, 0,
   'no answer of up to 2 tokens';
is $m->{'vllm:request_generation_tokens_bucket{model_name="mock",le="5"}'}, 22,
   'but of up to 5';
my %usage = (input => $in, output => $out);
for my $type (sort keys %usage) {
    my ($sum, $count) = (0, 0);
    for (qw(chat text_completion)) {
        my $l = ",gen_ai_token_type=\"$type\"";
        $sum += otel('client_token_usage_sum', $_, $l);
        $count += otel('client_token_usage_count', $_, $l);
    }
    is "$sum $count", "$usage{$type} 23", "usage: $type";
}
is otel('client_token_usage_bucket', 'chat',
        ",gen_ai_token_type=\"output\",le=\"$_->[0]\""), $_->[1],
   "up to $_->[0] said: $_->[1]" for [1, 0], [4, 0], [16, 20], [67108864, 21];
for (qw(moe_prefill_seconds moe_decode_seconds)) {
    is $m->{"${_}_count{engine=\"main\"}"}, 22, "$_: of those that are done";
}
cmp_ok $m->{'vllm:request_decode_time_seconds_sum{model_name="mock"}'}, '>',
       20 * 4 * 0.030 - 0.020, 'decode takes what was waited';
is $m->{'vllm:request_inference_time_seconds_count{model_name="mock"}'}, 22,
   'inference';

# Every histogram: its buckets hold those before them, the last one all.
{
    my (%last, @wrong);
    for my $line (split /\n/, $moe->get('/metrics')->{body}) {
        if ($line =~ /^(\S+)_bucket(\{.*),le="([^"]+)"\} (\d+)$/) {
            my ($le, $n) = @{ $last{"$1$2"} // [0, 0] };
            push @wrong, $line unless $n <= $4 && ($3 eq '+Inf' || $le < $3);
            $last{"$1$2"} = [$3, $4];
        } elsif ($line =~ /^(\S+)_count(\{.*)\} (\d+)$/) {
            my ($le, $n) = @{ $last{"$1$2"} // ['none', -1] };
            push @wrong, $line unless $le eq '+Inf' && $n == $3;
        }
    }
    is_deeply \@wrong, [], 'buckets are cumulative';
    cmp_ok scalar(keys %last), '>', 30, 'of all histograms';
}
cmp_ok $m->{'moe_frames_total{engine="main"}'}, '>=', $out, 'events';
cmp_ok $m->{'moe_wakeups_total{engine="main"}'}, '>', 10, 'wake-ups';
is $m->{'moe_missed_wakeups_total{engine="main"}'}, 0, 'none was missed';
is $m->{'moe_requests_total{engine="idle",finish="stop"}'}, 0,
   'nothing for the other engine';

# The dashboard asks for nothing that is not there.
my $board = Moe::slurp("$Moe::root/conf/grafana.json");
my @unknown = grep { my $name = $_; !grep { /^\Q$name\E\{/ } keys %$m }
              map { $_->{expr} =~ /\b(moe_\w+)/g }
              map { @{ $_->{targets} } }
              @{ JSON::PP::decode_json($board)->{panels} };
is "@unknown", '', 'conf/grafana.json asks for metrics that there are';

$moe->reload;
await_workers();
is metrics()->{'moe_requests_total{engine="main",finish="stop"}'}, 20,
   'a reload keeps the counters';
is $moe->post('/metrics', '')->{status}, 405, 'GET and HEAD only';

$moe->done;
