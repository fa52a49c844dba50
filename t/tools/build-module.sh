#!/usr/bin/env bash
# build-module.sh SRC BUILDDIR OUT.so
# Builds the dynamic module against an NGINX source tree: Debian's nginx-dev
# (headers and configure, flags in conf_flags), or an upstream tree.
# SAN=address,undefined in the environment adds sanitizers.
set -euo pipefail

src=$1 builddir=$2 out=$3
root=$(cd "$(dirname "$0")/../.." && pwd)
cc_opt='-g -O2 -fPIC' ld_opt='-fPIC' flags=(--with-compat)

if [ -f "$src/conf_flags" ]; then
    . "$src/conf_flags"
    flags=("${NGX_CONF_FLAGS[@]}")
    cc_opt="$(dpkg-buildflags --get CFLAGS) -fPIC $(dpkg-buildflags --get CPPFLAGS)"
    ld_opt="$(dpkg-buildflags --get LDFLAGS) -fPIC"
fi
if [ -n "${SAN:-}" ]; then
    cc_opt="$cc_opt -U_FORTIFY_SOURCE -fsanitize=$SAN -fno-omit-frame-pointer"
    ld_opt="$ld_opt -fsanitize=$SAN"
fi

mkdir -p "$builddir"
builddir=$(cd "$builddir" && pwd)
configure=./configure
[ -x "$src/configure" ] || configure=auto/configure

cd "$src"
# configure is needed once per NGINX, config, flags and place of both trees, which
# objects do not tell; make decides the rest.
stamp=$builddir/.configured
told="$root $src $builddir $cc_opt $ld_opt ${flags[*]}"
if [ "$root/config" -nt "$stamp" ] || [ "$(cat "$stamp")" != "$told" ]; then
    rm -rf "$builddir"
    mkdir "$builddir"
    $configure --with-cc-opt="$cc_opt" --with-ld-opt="$ld_opt" "${flags[@]}" \
        --add-dynamic-module="$root" --builddir="$builddir" \
        > "$builddir/configure.log" 2>&1 \
        || { cat "$builddir/configure.log"; exit 1; }
    echo "$told" > "$stamp"
fi
make -f "$builddir/Makefile" modules > "$builddir/make.log" 2>&1 \
    || { cat "$builddir/make.log"; exit 1; }
cp "$builddir/ngx_http_moe_module.so" "$out"
