#!/usr/bin/env bash
# build-nginx-asan.sh DIR
# Builds Debian's own NGINX source with AddressSanitizer and UBSan, and this
# tree's module with it, into DIR/nginx and DIR/ngx_http_moe_module.so.  Takes a
# minute; needs deb-src entries, which it keeps in DIR and nowhere else.
#
# nonnull-attribute is off: NGINX itself copies 0 bytes from NULL.
# NGX_DEBUG_PALLOC makes each pool allocation a malloc, so that an overflow of
# a pool block is seen.  Run it with
#   ASAN_OPTIONS=log_path=FILE:detect_leaks=1
#   LSAN_OPTIONS=suppressions=t/tools/nginx-lsan.supp
set -euo pipefail

mkdir -p "$1"
dir=$(cd "$1" && pwd)
root=$(cd "$(dirname "$0")/../.." && pwd)
san=address,undefined
off=-fno-sanitize=nonnull-attribute,alignment,pointer-overflow

if [ ! -f "$dir/src/.unpacked" ]; then
    mkdir -p "$dir/src" "$dir/apt/lists/partial"
    # The machine's own sources, asked for source packages as well; not the
    # security suites, which do not keep the sources of superseded versions.
    {
        sed -n 's/^deb \(.*debian.*\)/deb-src \1/p' \
            /etc/apt/sources.list 2> /dev/null | grep -v security || true
        for f in /etc/apt/sources.list.d/debian.sources; do
            [ -f "$f" ] || continue
            awk '/^URIs:/ {u = $2} /^Suites:/ {$1 = ""; s = $0}
                 /^Components:/ {n = split(s, a, " ");
                     for (i = 1; i <= n; i++)
                         if (a[i] !~ /security/)
                             print "deb-src", u, a[i], "main"}' "$f"
        done
    } > "$dir/apt/sources.list"
    apt=(-o "Dir::Etc::sourcelist=$dir/apt/sources.list"
         -o Dir::Etc::sourceparts=- -o "Dir::State::Lists=$dir/apt/lists")
    apt-get "${apt[@]}" update -q > "$dir/apt.log" 2>&1 &&
        (cd "$dir/src" &&
         apt-get "${apt[@]}" source -q --download-only nginx) >> "$dir/apt.log" 2>&1 ||
        { tail -5 "$dir/apt.log" >&2; exit 1; }
    # The upstream tarball and Debian's patches, without dpkg-dev's checks.
    (cd "$dir/src" && mkdir -p nginx-debian &&
     tar -xf nginx_*.orig.tar.gz -C nginx-debian --strip-components=1 &&
     tar -xf nginx_*.debian.tar.xz -C nginx-debian &&
     cd nginx-debian &&
     while read -r p; do
         case $p in ''|'#'*) continue ;; esac
         patch -s -p1 < "debian/patches/$p"
     done < debian/patches/series)
    touch "$dir/src/.unpacked"
fi

cd "$dir"/src/nginx-debian
[ -f "$dir/.configured" ] && [ ! "$root/config" -nt "$dir/.configured" ] || {
    conf=./configure
    [ -x "$conf" ] || conf=auto/configure
    $conf --with-debug --with-http_v2_module --with-http_ssl_module \
        --with-http_auth_request_module --builddir="$dir/obj" \
        --with-cc-opt="-O1 -g -fsanitize=$san $off -fno-sanitize-recover=undefined -fno-omit-frame-pointer -DNGX_DEBUG_PALLOC=1" \
        --with-ld-opt="-fsanitize=$san" \
        --add-dynamic-module="$root" > "$dir/configure.log" 2>&1 ||
        { tail -20 "$dir/configure.log" >&2; exit 1; }
    touch "$dir/.configured"
}
make -j2 -f "$dir/obj/Makefile" > "$dir/make.log" 2>&1 ||
    { tail -30 "$dir/make.log" >&2; exit 1; }
cp "$dir/obj/nginx" "$dir/obj/ngx_http_moe_module.so" "$dir"
