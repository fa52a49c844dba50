package Moe::Browser;

# Moe/Browser.pm - a headless Chromium, driven through chromedriver in W3C
# WebDriver's plain HTTP.  In: addresses, selectors, scripts.  Out: what the
# page shows.  It must not know the chat page.
#
#     my $b = Moe::Browser->new($moe);        # undef and why, if there is none
#     $b->go("http://127.0.0.1:$port/");
#     $b->type('#question', "What is 347 + 285?\n");
#     $b->js('return document.title');

use strict;
use warnings;

use HTTP::Tiny;
use JSON::PP ();
use MIME::Base64 ();

my $json = JSON::PP->new->utf8->allow_nonref;
my $element = 'element-6066-11e4-a52e-4f735466cecf';   # W3C WebDriver, 11.


sub new {
    my ($class, $moe) = @_;
    my $chrome = Moe::find('chromium') // Moe::find('google-chrome');
    my $driver = Moe::find('chromedriver');
    return (undef, 'no chromium') unless $chrome;
    return (undef, 'no chromedriver') unless $driver;

    my $port = $moe->port('chromedriver');
    my $self = bless { moe => $moe, url => "http://127.0.0.1:$port",
                       http => HTTP::Tiny->new(timeout => 60) }, $class;
    $self->{pid} = $moe->spawn('chromedriver.log', $driver, "--port=$port");
    $moe->until('chromedriver', sub {
        defined $moe->ended($self->{pid}) and die "chromedriver ended:\n"
            . Moe::slurp("$moe->{dir}/chromedriver.log");
        $self->{http}->get("$self->{url}/status")->{success};
    });
    my $r = $self->call('POST', '/session', { capabilities => { alwaysMatch => {
        'goog:chromeOptions' => {
            binary => $chrome,
            args => [qw(--headless=new --no-sandbox --disable-gpu
                        --remote-debugging-pipe
                        --no-first-run --disable-background-networking
                        --disable-component-update --disable-sync
                        --disable-dev-shm-usage),
                     "--user-data-dir=$moe->{dir}/chromium"],
        },
    } } });
    $self->{url} .= "/session/$r->{sessionId}";
    return $self;
}

sub call {
    my ($self, $method, $path, $body) = @_;
    my $r = $self->{http}->request($method, $self->{url} . $path, {
        headers => { 'Content-Type' => 'application/json' },
        defined $body ? (content => $json->encode($body)) : (),
    });
    my $value = eval { $json->decode($r->{content})->{value} };
    die "webdriver $path: ", ref $value ? $value->{message} : $r->{content}, "\n"
        unless $r->{success};
    return $value;
}

sub go { return $_[0]->call('POST', '/url', { url => $_[1] }) }

sub js {
    my ($self, $script, @args) = @_;
    return $self->call('POST', '/execute/sync',
                       { script => $script, args => \@args });
}

sub find {
    my ($self, $css) = @_;
    my $e = $self->call('POST', '/element',
                        { using => 'css selector', value => $css });
    return $e->{$element};
}

sub click { return $_[0]->call('POST', '/element/' . $_[0]->find($_[1])
                               . '/click', {}) }

sub type {
    my ($self, $css, $text) = @_;
    return $self->call('POST', '/element/' . $self->find($css) . '/value',
                       { text => $text });
}

# Rendered text of the first element that matches, as a reader sees it.
sub text { return $_[0]->call('GET', '/element/' . $_[0]->find($_[1])
                              . '/text') }

# Errors and warnings that the page has put on the console.
sub console {
    my $self = shift;
    return map { $_->{message} } @{ $self->call('POST', '/se/log',
                                                { type => 'browser' }) };
}

# A command of Chromium's own protocol, for what WebDriver has no word for.
sub cdp {
    my ($self, $command, $params) = @_;
    return $self->call('POST', '/goog/cdp/execute',
                       { cmd => $command, params => $params // {} });
}

sub screenshot {
    my ($self, $path) = @_;
    open my $f, '>:raw', $path or die "$path: $!\n";
    print $f MIME::Base64::decode_base64($self->call('GET', '/screenshot'));
    close $f;
}

# Closes the browser and waits until both are gone.
sub quit {
    my $self = shift;
    $self->call('DELETE', '');
    kill 'TERM', $self->{pid};
    $self->{moe}->await_exit('chromedriver', $self->{pid});
}

1;
