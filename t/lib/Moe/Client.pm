package Moe::Client;

# Moe/Client.pm - an HTTP/1.1 client over one bare socket that sees when each
# piece of an answer arrives: chunked bodies, gzip, keep-alive, server-sent
# events.  A test that waits in vain dies with what it waited for.
#
# It must not know the module or the engine; only collect() knows what OpenAI's
# events look like.

use strict;
use warnings;

use Compress::Raw::Zlib ();
use IO::Select;
use IO::Socket::INET;
use JSON::PP ();
use Time::HiRes ();

our $json = JSON::PP->new->utf8->canonical->allow_nonref;


# port => N, timeout => seconds for anything to arrive (60).
sub new {
    my ($class, %o) = @_;
    my $sock = IO::Socket::INET->new(PeerAddr => '127.0.0.1',
                                     PeerPort => $o{port}, Timeout => 10)
        or die "connect to port $o{port}: $!\n";
    $sock->sockopt(Socket::SO_RCVBUF(), $o{rcvbuf}) if $o{rcvbuf};
    $sock->setsockopt(Socket::IPPROTO_TCP(), Socket::TCP_NODELAY(), 1);
    return bless { sock => $sock, in => '', timeout => $o{timeout} // 60 },
           $class;
}

# Sends a request; a reference as body is sent as JSON.  Returns itself.
sub request {
    my ($self, $method, $path, $body, %headers) = @_;
    $body = $json->encode($body) if ref $body;
    my %h = ('Host' => 'localhost',
             defined $body ? ('Content-Type' => 'application/json',
                              'Content-Length' => length $body) : (),
             %headers);
    my $head = join "\r\n", "$method $path HTTP/1.1",
        (map { "$_: $h{$_}" } grep { defined $h{$_} } sort keys %h), '', '';
    $self->send($head . ($body // ''));
    $self->{method} = $method;
    return $self;
}

sub send {
    my ($self, $bytes) = @_;
    my $off = 0;
    while ($off < length $bytes) {
        my $n = syswrite $self->{sock}, $bytes, length($bytes) - $off, $off;
        die "send: $!\n" unless defined $n;
        $off += $n;
    }
    return $self;
}

# Goes away; hard => 1 with a reset instead of an end of file.
sub close {
    my ($self, %o) = @_;
    my $sock = delete $self->{sock} or return;
    $sock->setsockopt(Socket::SOL_SOCKET(), Socket::SO_LINGER(),
                      pack 'll', 1, 0) if $o{hard};
    close $sock;
}

# Reads once; false at the end of the stream.  {n_bytes} is all that came.
sub fill {
    my ($self, $what) = @_;
    return 0 if $self->{eof};
    IO::Select->new($self->{sock})->can_read($self->{timeout})
        or die "no $what within $self->{timeout} s\n";
    my $n = sysread $self->{sock}, $self->{in}, 65536, length $self->{in};
    $self->{at} = Time::HiRes::time();
    $self->{n_bytes} += $n // 0;
    return 1 if $n;
    $self->{eof} = 1;
    $self->{reset} = 1 unless defined $n;
    return 0;
}

# True if nothing arrives for that long.
sub quiet {
    my ($self, $seconds) = @_;
    return !IO::Select->new($self->{sock})->can_read($seconds);
}

# Reads the head of an answer: {status}, {headers} (lower-case names, several
# of one name joined with commas).
sub head {
    my $self = shift;
    @$self{qw(text done truncated z left)} = ('', 0, 0, undef, undef);
    my $end;
    while (($end = index $self->{in}, "\r\n\r\n") < 0) {
        $self->fill('response head') or die "closed before the response head\n";
    }
    my ($first, @lines) = split /\r\n/, substr $self->{in}, 0, $end + 4, '';
    ($self->{status}) = $first =~ m{^HTTP/1\.[01] (\d{3})}
        or die "not a status line: $first\n";
    my %h;
    for (@lines) {
        my ($k, $v) = /^([^:]+):\s*(.*)$/ or die "not a header: $_\n";
        $h{lc $k} = exists $h{lc $k} ? "$h{lc $k}, $v" : $v;
    }
    $self->{headers} = \%h;
    $self->{chunked} = ($h{'transfer-encoding'} // '') eq 'chunked';
    $self->{left} = $h{'content-length'};
    $self->{left} = 0 if $self->{method} eq 'HEAD'
                         || $self->{status} =~ /^(?:204|304)$/;
    $self->{z} = Compress::Raw::Zlib::Inflate->new(
        -WindowBits => Compress::Raw::Zlib::WANT_GZIP())
        if ($h{'content-encoding'} // '') eq 'gzip';
    return $self;
}

# The next piece of the body as it arrived, decoded; undef at its end.
sub piece {
    my $self = shift;
    return if $self->{done};
    my $p = $self->{chunked} ? $self->chunk : $self->plain;
    if (!defined $p) {
        $self->{done} = 1;
        return;
    }
    return $p unless $self->{z};
    my $status = $self->{z}->inflate($p, my $out);
    die "gzip: $status\n" unless $status == Compress::Raw::Zlib::Z_OK()
        || $status == Compress::Raw::Zlib::Z_STREAM_END()
        || $status == Compress::Raw::Zlib::Z_BUF_ERROR();
    return $out // '';
}

sub chunk {
    my $self = shift;
    my ($from, $n);
    for (;;) {
        if ($self->{in} =~ /\A([0-9a-fA-F]+)[^\r\n]*\r\n/) {
            ($from, $n) = ($+[0], hex $1);
            last if length $self->{in} >= $from + $n + 2;
        }
        $self->fill('chunk') or return $self->cut;
    }
    my $p = substr $self->{in}, $from, $n;
    substr($self->{in}, $from + $n, 2) eq "\r\n" or die "chunk without end\n";
    substr($self->{in}, 0, $from + $n + 2) = '';
    return $n ? $p : undef;
}

sub plain {
    my $self = shift;
    return if defined $self->{left} && $self->{left} == 0;
    if ($self->{in} eq '') {
        $self->fill('body')
            or return defined $self->{left} ? $self->cut : undef;
    }
    my $n = length $self->{in};
    $n = $self->{left} if defined $self->{left} && $n > $self->{left};
    $self->{left} -= $n if defined $self->{left};
    return substr $self->{in}, 0, $n, '';
}

# The connection ended inside the body.
sub cut {
    $_[0]{truncated} = 1;
    return;
}

# A whole answer: status, headers, body, json (if that is what it is),
# truncated.
sub response {
    my $self = shift;
    $self->head;
    my $body = '';
    while (defined(my $p = $self->piece)) { $body .= $p }
    my %r = (body => $body, map { $_ => $self->{$_} }
             qw(status headers truncated));
    $r{json} = eval { $json->decode($body) }
        if ($r{headers}{'content-type'} // '') =~ m{^application/json};
    return \%r;
}

# The next server-sent event: data, json (unless it is [DONE]), comment, at
# (arrival of its last byte), n (how many pieces had come by then).  undef at
# the end of the body.
sub event {
    my $self = shift;
    my $end;
    while (($end = index $self->{text}, "\n\n") < 0) {
        my $p = $self->piece;
        if (!defined $p) {
            die "the body ends inside an event: $self->{text}\n"
                if $self->{text} ne '' && !$self->{truncated};
            return;
        }
        $self->{text} .= $p;
        $self->{pieces}++;
    }
    my %e = (at => $self->{at}, n => $self->{pieces});
    for my $line (split /\n/, substr $self->{text}, 0, $end + 2, '') {
        my ($k, $v) = $line =~ /^([^:]*):? ?(.*)$/;
        $k = 'comment' if $k eq '';
        $e{$k} = exists $e{$k} ? "$e{$k}\n$v" : $v;
    }
    $e{json} = $json->decode($e{data})
        if defined $e{data} && $e{data} ne '[DONE]';
    return \%e;
}

# The rest of a stream of chat or text completions, of choice 0: content,
# reasoning, finish, usage, done ([DONE] was seen), error, n_events (that
# brought text), n_comments, events.
sub collect {
    my $self = shift;
    my %r = (content => '', reasoning => '', n_events => 0, n_comments => 0,
             events => [], done => 0);
    while (my $e = $self->event) {
        push @{ $r{events} }, $e;
        $r{n_comments}++ if defined $e->{comment};
        next unless defined $e->{data};
        die "an event after [DONE]: $e->{data}\n" if $r{done};
        if ($e->{data} eq '[DONE]') { $r{done} = 1; next }
        my $j = $e->{json};
        $r{error} = $j->{error} if $j->{error};
        $r{usage} = $j->{usage} if $j->{usage};
        my ($c) = grep { !$_->{index} } @{ $j->{choices} // [] } or next;
        my $text = $c->{delta}{content} // $c->{text} // '';
        my $thought = $c->{delta}{reasoning_content} // '';
        $r{content} .= $text;
        $r{reasoning} .= $thought;
        $r{n_events}++ if $text ne '' || $thought ne '';
        if (defined $c->{finish_reason}) {
            die "two finish reasons\n" if defined $r{finish};
            $r{finish} = $c->{finish_reason};
        }
    }
    return \%r;
}

1;
