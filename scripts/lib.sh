# shellcheck shell=bash disable=SC2034
# lib.sh: what the scripts share. Sourced, never run.
#
# Everything that is fetched or built outside the tree lies in one cache folder:
#   downloads/         files as they came, each checked against the SHA-256 that its script names
#   fetch-venv/        a Python environment whose pip fetches them
#   ggml-VERSION/      ggml, built
#   oracle-venv-HASH/  tests/requirements.txt, installed; HASH is of that file
#   bench-venv-HASH/   bench/requirements.txt, likewise
#   models/, hutto/    the model and the data sets; news.jsonl: texts of one of them
# A step makes its result in a scratch folder beside these and renames it: what is there is whole.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${SOFTPROMPT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/softprompt}
export SOFTPROMPT_CACHE=$cache
scratch=$cache/scratch.$$
trap 'rm -rf "$scratch"' EXIT

say() { printf '== %s\n' "$*"; }

die()
{
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# quietly COMMAND...: its output is shown only if it fails.
quietly()
{
    local log status=0
    log=$(mktemp)
    "$@" >"$log" 2>&1 </dev/null || status=$?
    if [ "$status" != 0 ]; then
        tail -n 40 "$log" >&2
        rm -f "$log"
        die "this failed with status $status: $*"
    fi
    rm -f "$log"
}

sha256_of() { sha256sum "$1" | cut -d ' ' -f 1; }

# verify_sha256 FILE EXPECTED
verify_sha256()
{
    local found
    found=$(sha256_of "$1")
    [ "$found" = "$2" ] || die "$1: SHA-256 is $found, expected $2; remove the file and run this again"
}

# publish TEMPORARY FINAL: renames a finished result. Of two scripts at once, the second finds it done.
publish() { mv -T "$1" "$2" || [ -e "$2" ] || die "cannot rename $1 to $2"; }

# make_venv FINAL [PIP ARGUMENT...]: a virtual environment, with packages if there are arguments.
make_venv()
{
    local final=$1 work=$scratch/venv
    shift
    quietly python3 -m venv "$work"
    [ $# = 0 ] || quietly "$work/bin/python" -m pip install --disable-pip-version-check "$@"
    publish "$work" "$final"
}

# venv_path NAME REQUIREMENTS: where the environment for this version of a requirements file is. tests/CMakeLists.txt does the same.
venv_path() { echo "$cache/$1-$(sha256_of "$2" | cut -c 1-12)"; }

venv_works() { "$1/bin/python" -m pip --version >/dev/null 2>&1; }

# fetch_package NAME VERSION SHA256 FILE [PIP ARGUMENT...]: a file of the Python package index, into $cache/downloads.
# pip compares the checksum before it opens the file; a file that is there already is checked here.
fetch_package()
{
    local name=$1 version=$2 sha256=$3 file=$4 work=$scratch/download
    shift 4
    if [ -e "$cache/downloads/$file" ]; then
        verify_sha256 "$cache/downloads/$file" "$sha256"
        return
    fi
    say "fetching $file (Python package $name $version)"
    mkdir -p "$work" "$cache/downloads"
    venv_works "$cache/fetch-venv" || { rm -rf "$cache/fetch-venv" && make_venv "$cache/fetch-venv"; }
    printf '%s==%s --hash=sha256:%s\n' "$name" "$version" "$sha256" >"$work/requirements.txt"
    quietly "$cache/fetch-venv/bin/python" -m pip download --disable-pip-version-check --no-deps "$@" --require-hashes \
        -r "$work/requirements.txt" -d "$work"
    verify_sha256 "$work/$file" "$sha256"
    publish "$work/$file" "$cache/downloads/$file"
}
