# The shape of the tree: who may include whom, how large a file may be, what
# code may not call, and that README's map is the territory.

use strict;
use warnings;

use Cwd ();
use File::Find ();
use Test::More;

chdir(Cwd::abs_path(__FILE__) =~ s{/t/[^/]*$}{}r) or die;


# Levels of engine/: includes go to the same or a lower one.  A name stands for
# every file whose name begins with it and an underscore as well.
my %level = (
    abi => 0, ring => 0, base => 0, sha256 => 0,
    json_util => 1, unicode => 1, template => 1,
    tokenizer => 2, parse => 2, safetensors => 2,
    backend => 3, cpu => 3,
    model => 4, families => 4, kv => 4,
    sampler => 5, sched => 5, serve => 5, main => 5,
);

# Text (1, 2) and compute (3, 4) meet in these alone; and these two belong to
# both: models are files.
my $meet = qr/^(?:serve|main)$/;
my %both = map { $_ => 1 } qw(json_util safetensors);

# Words of struct abi_page that move while two processes look at them.
my $shared = join '|', qw(tail head wake_at heartbeat state n_running n_queued
                          max_running max_queued kv_pages kv_pages_used
                          n_prompt_tok n_output_tok n_steps
                          n_queued_tok max_queued_tok n_prefix_queries_tok
                          n_prefix_hits_tok n_preemptions);

my $banned = qr/\b(?:strcpy|strcat|strncpy|strncat|sprintf|vsprintf|gets|atoi
                   |atol|atoll|atof|alloca|strtok)\s*\(/x;


my %text;               # path => content of every file of ours
File::Find::find({ no_chdir => 1, wanted => sub {
    return unless -f && /(?:\.(?:c|h|cu|cuh|pl|pm|t|sh|py|js|mjs|css|html|conf)
                          |Makefile)$/x;
    open my $f, '<:encoding(UTF-8)', $_ or die "$_: $!";
    local $/;
    $text{$_} = <$f> // '';
}, preprocess => sub {
    # Only what is in the project: no build directory, nothing installed.
    return grep { !/^(?:build|node_modules|__pycache__|\.)/ } @_;
} }, grep { -e } qw(Makefile ngx_module engine cuda conf t));

my @ours = sort grep { m{^(?:engine|ngx_module)/.*\.[ch]$} } keys %text;
my @c = sort grep { /\.(?:c|h|cc|cu|cuh)$/ } keys %text;

# engine/cpu/x.c is cpu, engine/ring_peer.c is ring.
sub area {
    my ($dir, $name) = $_[0] =~ m{^(?:engine/)?(?:(\w+)/)?(\w+)\.\w+$} or return;
    return $dir if defined $dir;
    my ($found) = grep { $name =~ /^\Q$_\E(?:_|$)/ }
                  sort { length $b <=> length $a } keys %level;
    return $found;
}

# Comments and strings are no code.
sub code {
    return $_[0] =~ s{(/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*")}
                     {$1 =~ tr/\n//cdr}gesr;
}

sub lines_with {
    my ($path, $text, $re) = @_;
    my ($n, @out) = 0;
    for (split /\n/, $text) {
        $n++;
        push @out, "$path:$n: " . s/^\s+//r if $_ =~ $re;
    }
    return @out;
}

sub nothing {
    my ($what, @found) = @_;
    is(join("\n", @found), '', $what);
}


# -- includes --------------------------------------------------------------

my @wrong;
for my $path (grep { m{^engine/} } @ours) {
    my $from = area($path);
    if (!defined $from || !exists $level{$from}) {
        push @wrong, "$path: has no level";
        next;
    }
    my %kinds;
    for my $inc ($text{$path} =~ /^\s*#\s*include\s+"([^"]+)"/mg) {
        my $to = area($inc);
        if (!defined $to || !exists $level{$to} || $inc =~ /\.c$/) {
            push @wrong, "$path: includes $inc";
            next;
        }
        push @wrong, "$path (level $level{$from}) includes $inc"
            . " (level $level{$to})" if $level{$to} > $level{$from};
        next if $both{$to};
        $kinds{text} = $inc if $level{$to} == 1 || $level{$to} == 2;
        $kinds{compute} = $inc if $level{$to} == 3 || $level{$to} == 4;
    }
    $kinds{compute} //= $path if $level{$from} == 3 || $level{$from} == 4;
    push @wrong, "$path: text ($kinds{text}) meets compute ($kinds{compute})"
        if keys %kinds == 2 && $from !~ $meet;
}
nothing('includes go down, and text meets compute in serve alone', @wrong);

@wrong = ();
for my $path (grep { m{^ngx_module/} } @ours) {
    push @wrong, map { "$path: includes $_" }
        grep { m{/} && !m{^(?:(?:sys|arpa|netinet)/|\.\./engine/ring\.h$)}
               || -e "engine/$_"
               && !m{^(?:\.\./engine/)?(?:abi|ring)\.h$} }
        $text{$path} =~ /^\s*#\s*include\s+["<]([^">]+)[">]/mg;
}
nothing('of the engine the module includes abi.h and ring.h alone', @wrong);


# -- words -----------------------------------------------------------------

# An access is ring_word_get(&X->tail) or __atomic_...(&X->tail ...), where X is
# a page: its name, or the name of its last member, says so.
@wrong = ();
for my $path (@ours) {
    my $code = code($text{$path});
    while ($code =~ /([^;{}]*?)\b(?:page|own|peer)\s*->\s*($shared)\b/g) {
        my ($before, $word, $at) = ($1, $2, pos $code);
        next if $before =~ /(?:ring_word_[gs]et|__atomic_\w+)\s*\(\s*&[\w>.\[\]()-]*$/;
        my $line = 1 + (substr($code, 0, $at) =~ tr/\n//);
        push @wrong, "$path:$line: $word without an accessor";
    }
}
nothing('shared words are touched through their accessors', @wrong);

nothing('no call of a function that cannot be used safely',
        map { lines_with($_, code($text{$_}), $banned) } @ours);

nothing('no file over 1000 lines',
        map { my $n = $text{$_} =~ tr/\n//; $n > 1000 ? "$_: $n lines" : () }
        sort keys %text);

nothing('no tab, no blank at the end of a line, no line over 80 columns',
        map { lines_with($_, $text{$_}, qr/\t|[ ]$|^.{81}/) } @c);

nothing('each file says at its head what it is for',
        grep { $text{$_} !~ m{\A/\*\n?} } @c);


# -- the map ---------------------------------------------------------------

SKIP: {
    open my $f, '<:encoding(UTF-8)', 'README.md' or die "README.md: $!";
    my $readme = do { local $/; <$f> };
    my ($map) = $readme =~ /^(## [^\n]*\bmap\b.*?)(?=^## |\z)/msi
        or skip 'README.md has no map yet', 2;

    # A name, or name.c for both name.c and name.h; a directory for what is in
    # it.
    my @missing = grep {
        my ($name, $stem) = m{(([^/]+?)\.[ch])$};
        $map !~ /(?<![\w.])\Q$name\E(?![\w.])/
            && $map !~ /(?<![\w])\Q$stem\E(?:\.[\w{},.]+)?(?![\w.])/;
    } @ours;
    nothing('README names every source file', @missing);

    my %exists;
    File::Find::find({ no_chdir => 1, wanted => sub {
        $exists{m{([^/]+)$} ? $1 : $_} = 1;
    } }, grep { -e } qw(Makefile README.md LICENSE config ngx_module engine
                        cuda conf t));
    nothing('README names no file that is not there',
            grep { !$exists{$_} } $map =~ /(?<![\w*])(\w[\w-]*\.(?:c|h|t|sh|pm))\b/g);
}

done_testing();
