#!/bin/sh
# check.sh BUILD CC: installs BUILD into a temporary prefix and uses it from there, as an outside project would: by pkg-config,
# by find_package, from C++, and after the whole tree was moved.
set -eu
build=$1 cc=$2
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cmake --install "$build" --prefix "$work/first" >/dev/null
mv "$work/first" "$work/prefix"
version=$(sed -n 's/^CMAKE_PROJECT_VERSION:STATIC=//p' "$build/CMakeCache.txt")

expect_version()
{
    found=$("$1") || { echo "$2: the program failed" >&2; exit 1; }
    [ "$found" = "$version" ] || { echo "$2: version $found, expected $version" >&2; exit 1; }
    echo "$2: version $found"
}

PKG_CONFIG_PATH=$(dirname "$(find "$work/prefix" -name softprompt.pc)")
export PKG_CONFIG_PATH
flags=$(pkg-config --cflags --libs softprompt)
# shellcheck disable=SC2086 # the flags are meant to be split
"$cc" -std=c11 -Wall -Wextra -Werror -pedantic "$here/outside.c" $flags \
    "-Wl,-rpath,$(pkg-config --variable=libdir softprompt)" -o "$work/by_pkg_config"
expect_version "$work/by_pkg_config" pkg-config

cmake -G Ninja -S "$here" -B "$work/build" -DCMAKE_C_COMPILER="$cc" -DCMAKE_PREFIX_PATH="$work/prefix" >/dev/null
cmake --build "$work/build" >/dev/null
expect_version "$work/build/outside" find_package

printf '#include <softprompt.h>\nint main() { return sp_version() == nullptr; }\n' >"$work/outside.cpp"
# shellcheck disable=SC2086
c++ -std=c++17 -Wall -Wextra -Werror -pedantic -fsyntax-only "$work/outside.cpp" $flags
echo "C++: the header compiles"

if [ -x "$work/prefix/bin/softprompt" ]; then
    "$work/prefix/bin/softprompt" --version
fi

# Whatever is visible is a promise: only sp_ names may be.
library=$(find "$work/prefix" -name 'libsoftprompt.so')
strangers=$(nm -D --defined-only "$library" | awk '{print $3}' | grep -v '^sp_' || true)
[ -z "$strangers" ] || { echo "libsoftprompt.so exports foreign symbols: $strangers" >&2; exit 1; }
echo "symbols: sp_ only"
