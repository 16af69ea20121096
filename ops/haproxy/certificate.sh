#!/usr/bin/env bash
# Makes HAProxy's certificate file out of what an authority gave you, or checks the one in use.
#
#   certificate.sh install CHAIN KEY [NAME]   put both into one file, after checking that they fit
#                                             together, that the chain is valid for 14 days and more,
#                                             and, if given, for NAME
#   certificate.sh try NAME                   make one that no client trusts, to try TLS
#   certificate.sh check [DAYS]               exit code 1 if one in use ends within DAYS, 14 by default
#
# The files are in ops/secrets/haproxy, or in the folder that CERTS names. HAProxy reads them again
# when it is reloaded: docker compose exec haproxy sh -c 'kill -USR2 1'
set -euo pipefail

folder=${CERTS:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/secrets/haproxy}
days=14

fail() {
  echo "certificate.sh: $*" >&2
  exit "${code:-2}"
}

# The containers' user has to read it, and reaches a mounted folder without passing the one above it.
put() { # NAME FILE…
  local parent=${folder%/*}
  [[ -d $parent ]] || { mkdir -p "$parent" && chmod 0700 "$parent"; }
  mkdir -p "$folder"
  (umask 077 && cat "${@:2}" >"$folder/.new")
  chmod 0644 "$folder/.new"
  mv "$folder/.new" "$folder/$1.pem"
  echo "$folder/$1.pem: $(openssl x509 -in "$folder/$1.pem" -noout -enddate)"
}

install() {
  (($# == 2 || $# == 3)) || fail "install needs the chain, the key and perhaps a name; see the file"
  local chain=$1 key=$2 name=${3-} one
  for one in "$chain" "$key"; do
    [[ -r $one ]] || fail "$one: cannot be read"
  done
  openssl x509 -in "$chain" -noout 2>/dev/null || fail "$chain: does not begin with a certificate"
  openssl pkey -in "$key" -passin pass: -noout 2>/dev/null ||
    fail "$key: no private key, or one with a password"
  [[ $(openssl x509 -in "$chain" -noout -pubkey) == "$(openssl pkey -in "$key" -pubout)" ]] ||
    fail "$key: the key of another certificate"
  openssl x509 -in "$chain" -noout -checkend $((days * 86400)) >/dev/null ||
    fail "$chain: valid for less than $days days ($(openssl x509 -in "$chain" -noout -enddate))"
  # openssl always exits with 0 here.
  [[ ! $name ]] || openssl x509 -in "$chain" -noout -checkhost "$name" | grep -q "does match" ||
    fail "$chain: not for $name"
  put public "$chain" "$key"
}

try() {
  (($# == 1)) || fail "try needs the name that clients use"
  local made
  made=$(mktemp -d)
  # shellcheck disable=SC2064 # expand the folder now
  trap "rm -rf '$made'" EXIT
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -sha256 -days 30 \
    -keyout "$made/key" -out "$made/chain" -subj "/CN=$1" -addext "subjectAltName=DNS:$1" 2>/dev/null
  put public "$made/chain" "$made/key"
}

check() {
  local limit=${1:-$days} file found=
  [[ $limit =~ ^[0-9]+$ ]] || fail "$limit: not a number of days"
  for file in "$folder"/*.pem; do
    [[ -e $file ]] || code=1 fail "$folder: no certificate"
    openssl x509 -in "$file" -noout -checkend $((limit * 86400)) >/dev/null || {
      echo "$file: $(openssl x509 -in "$file" -noout -enddate), less than $limit days" >&2
      found=yes
    }
  done
  [[ ! $found ]]
}

type openssl >/dev/null || fail "openssl is not installed"
case ${1-} in
  install | try | check) "$@" ;;
  -h | --help | '') sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" ;;
  *) fail "$1 is not a command: install, try or check" ;;
esac
