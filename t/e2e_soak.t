# 64 streams at a time, 1,000 requests, clients that leave at random: every
# request ends in exactly one terminal state, and no descriptor, page or job is
# left over.  Answers that are read to their end are right to the byte: those of
# the real engine are the ones that it gives alone (D6).
#
# SOAK=N for another number of requests, SEED=N for other choices.

use strict;
use warnings;

use Errno 'EAGAIN';
use IO::Select;
use IO::Socket::INET;
use JSON::PP ();
use Socket qw(SOL_SOCKET SO_LINGER);
use Test::More;
use Time::HiRes 'time';

use Moe;

my $n_requests = $ENV{SOAK} // ($ENV{LONG} ? 5000 : 1000);
my $n_streams = 64;
my $seed = $ENV{SEED} // 42;
my $json = JSON::PP->new->utf8->canonical;
my $moe;

# What a client does: reads a stream, or a whole answer, to its end; leaves
# after some bytes; as soon as it has asked; or before it has.
my @kinds = (('stream') x 9, ('whole') x 3, ('leave') x 5, ('ask') x 2, 'part');

sub choose { return $_[rand @_] }


# -- requests --------------------------------------------------------------

sub mock_request {
    my $n = 1 + int rand 60;
    my $r = int rand 10;
    return ("mock tokens=$n reasoning=$r delay_ms=" . int(rand 3), {
        content => join("", map { "w$_ " } 0 .. $n - 1),
        thought => join("", map { "r$_ " } 0 .. $r - 1),
    });
}

my %alone;              # question => what the real engine answers to it alone

sub model_request {
    my $q = choose(sort keys %alone);
    return ($q, $alone{$q});
}

sub ask_alone {
    for my $q ('What is 347 + 285?', 'What is 912 - 77?', 'What is an otter?',
               'Hello!', 'What is 5 + 8?', 'What is a tree?') {
        my $s = $moe->stream('/v1/chat/completions', body($q, 1))->collect;
        $alone{$q} = { content => $s->{content}, thought => $s->{reasoning} };
    }
}

sub body {
    my ($question, $stream) = @_;
    return { messages => [{ role => 'user', content => $question }],
             max_tokens => 200, temperature => 0,
             stream => $stream ? JSON::PP::true : JSON::PP::false };
}


# -- clients ---------------------------------------------------------------

sub start {
    my $request = shift;
    my ($question, $want) = $request->();
    my $kind = choose(@kinds);
    my $body = $json->encode(body($question, $kind ne 'whole'));
    my $out = join "\r\n", 'POST /v1/chat/completions HTTP/1.1',
        'Host: localhost', 'Connection: close',
        'Content-Length: ' . length $body, '', $body;
    substr($out, -int(1 + rand length $body)) = '' if $kind eq 'part';
    my $sock = IO::Socket::INET->new(PeerAddr => '127.0.0.1',
                                     PeerPort => $moe->port)
        or die "connect: $!";
    $sock->blocking(0);
    syswrite($sock, $out) == length $out or die "short write: $!";
    return { sock => $sock, kind => $kind, want => $want, in => '',
             leave_at => $kind eq 'leave' ? 300 + int rand 6000
                       : $kind eq 'stream' || $kind eq 'whole' ? 1e18 : 0,
             question => $question };
}

# Half of those who leave do it with a reset.
sub leave {
    my $sock = shift->{sock};
    $sock->setsockopt(SOL_SOCKET, SO_LINGER, pack 'll', 1, 0) if rand() < 0.5;
    close $sock;
}

# Reads what is there; true when this client is done.
sub step {
    my $c = shift;
    my $n = sysread $c->{sock}, $c->{in}, 65536, length $c->{in};
    return 0 if !defined $n && $! == EAGAIN;
    $c->{left} = 1 if $n && length $c->{in} >= $c->{leave_at};
    return !$n || $c->{left};
}

sub soak {
    my $request = shift;
    my ($started, @over) = (0);
    my $sel = IO::Select->new;
    my %by;                 # descriptor => client
    my $end = time + 500;
    while ($started < $n_requests || %by) {
        die "not done in time: " . keys(%by) . " are left\n" if time > $end;
        while ($started < $n_requests && keys %by < $n_streams) {
            my $c = start($request);
            $started++;
            if ($c->{leave_at}) {
                $by{ fileno $c->{sock} } = $c;
                $sel->add($c->{sock});
            } else {
                leave($c);
                $c->{left} = 1;
                push @over, $c;
            }
        }
        for my $sock ($sel->can_read(1)) {
            my $c = $by{ fileno $sock };
            next unless step($c);
            $sel->remove($sock);
            delete $by{ fileno $sock };
            $c->{left} ? leave($c) : close $sock;
            push @over, $c;
        }
    }
    return @over;
}


# -- what they have got ----------------------------------------------------

sub dechunk {
    my ($in) = @_;
    my $out = '';
    while ($in =~ s/\A([0-9a-f]+)\r\n//i) {
        my $n = hex $1;
        return ($out, $in eq "\r\n") if !$n;
        return ($out, 0) if length $in < $n + 2;
        $out .= substr $in, 0, $n, '';
        $in =~ s/\A\r\n//;
    }
    return ($out, 0);
}

# Empty, or what is wrong with the answer.
sub verdict {
    my $c = shift;
    my ($head, $in) = split /\r\n\r\n/, $c->{in}, 2;
    return "no answer" unless defined $in;
    my ($status) = $head =~ m{^HTTP/1.1 (\d+)};
    return "status $status" if $status != 200;
    if ($head =~ /^Transfer-Encoding: chunked/mi) {
        ($in, my $whole) = dechunk($in);
        return 'cut off' unless $whole;
    }
    my ($content, $thought, $finish, $done) = ('', '', 0, 0);
    if ($c->{kind} eq 'whole') {
        my $choice = $json->decode($in)->{choices}[0];
        $content = $choice->{message}{content};
        $thought = $choice->{message}{reasoning_content} // '';
        ($finish, $done) = (defined $choice->{finish_reason}, 1);
    } else {
        for (split /\n\n/, $in) {
            next if /^:/;
            s/^data: // or return "not an event: $_";
            if ($_ eq '[DONE]') { $done++; next }
            return "an event after [DONE]" if $done;
            my $j = $json->decode($_);
            return "an error: $j->{error}{message}" if $j->{error};
            my $choice = $j->{choices}[0];
            $content .= $choice->{delta}{content} // '';
            $thought .= $choice->{delta}{reasoning_content} // '';
            $finish++ if defined $choice->{finish_reason};
        }
    }
    return "$finish finish reasons, $done ends" if $finish != 1 || $done != 1;
    return "content '$content', not '$c->{want}{content}'"
        if $content ne $c->{want}{content};
    return "thought '$thought', not '$c->{want}{thought}'"
        if $thought ne $c->{want}{thought};
    return '';
}


# -- the test --------------------------------------------------------------

sub descriptors {
    return map { $moe->fds($_) } $moe->workers, $moe->engine_pids;
}

for my $mode ('mock', 'model') {
    SKIP: {
        skip 'the engine or the demo model is not built', 1
            if $mode eq 'model' && !Moe->can_engine;
        $moe = Moe->new;
        $mode eq 'mock' ? $moe->mock('--quiet')
                        : $moe->engine(args => ['--max-seqs', $n_streams]);
        $moe->nginx->wait_ready;
        my $request = $mode eq 'mock' ? \&mock_request : \&model_request;
        ask_alone() if $mode eq 'model';
        srand $seed;

        # A first round, so that what is opened once is open.
        my $r = $moe->post('/v1/chat/completions', body('mock tokens=1', 0));
        is($r->{status}, 200, "$mode: answers");
        $moe->until('no job', sub { !$moe->busy });
        my @before = descriptors();

        my @over = soak($request);
        is(scalar @over, $n_requests, "$mode: every request is over");
        my @whole = grep { !$_->{left} } @over;
        cmp_ok(@whole, '>', $n_requests / 3, "$mode: many were read to the end");
        cmp_ok(@over - @whole, '>', $n_requests / 5, "$mode: many were left");
        my @wrong = grep { $_ } map { verdict($_) } @whole;
        is(scalar @wrong, 0, "$mode: each answer ends once and is right")
            or diag join "\n", @wrong > 5 ? @wrong[0 .. 4] : @wrong;

        ok(eval { $moe->until('no job', sub { !$moe->busy }) },
           "$mode: no job is left") or diag $@;
        my @after;
        ok(eval { $moe->until('descriptors', sub {
            @after = descriptors();
            !grep { $after[$_] > $before[$_] } 0 .. $#before;
        }) }, "$mode: no descriptor is left") or diag "@after, not @before";
        my $h = $moe->health;
        my $w = $h->{worker};
        is($h->{kv_pages_used}, 0, "$mode: no page is left");
        is($w->{accepted}, $w->{done} + $w->{error} + $w->{cancelled},
           "$mode: every request ended in exactly one way");
        note "$mode: ", $json->encode($h);
        $moe->stop;
    }
}

done_testing();
