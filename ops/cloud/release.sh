#!/usr/bin/env bash
# Runs as root on a machine of instances.sh, where everything is below /srv/odin. MACHINE is one of ws,
# backend, runner and proxy:
#   release.sh deploy MACHINE IMAGE REVISION build|pull|none   deploy the files that instances.sh has sent
#   release.sh start MACHINE   start what was deployed last
#   release.sh rotate proxy NODE drain|ready   have HAProxy send NODE no new clients, or some again
#   release.sh back MACHINE    return to the previous release; a second time returns to this one
# A release replaces its files and its image. Changes made on the machine stay: the settings files
# below, and each line of .env that instances.sh does not write.
set -euo pipefail
export LC_ALL=C

# Only tests set another folder.
root=${ODIN_ROOT:-/srv/odin}
# Every release uses the same path and the same folders. Compose recreates a container when the path
# of a mount changes, and NATS would then lose its stream, which is in memory.
current=$root/current
previous=$root/previous
# The files that the containers have read: a copy of ops/ from their last start.
in_use=$root/in-use
settings=(ops/settings/ws.env ops/prometheus/targets/ws.yml ops/prometheus/targets/haproxy.yml)

fail() {
  echo "release.sh: $*" >&2
  exit 1
}

compose() {
  docker compose --file "$current/ops/isolated/$machine/compose.yml" "$@"
}

wait_for_docker() {
  # On a new machine startup.sh may still be installing it.
  timeout 300 sh -c 'until docker info && docker compose version && docker buildx version
    do sleep 3; done' >/dev/null 2>&1 ||
    fail "no Docker in 5 minutes; see: journalctl -u google-startup-scripts"
}

# Keep only a release that was completed: a failed one is not a way back, and a release that is
# deployed again is not its own predecessor.
keep_as_previous() { # the RELEASE that is deployed now
  if [[ -e $current/.release && $(<"$current/.release") != "$1" ]]; then
    rm -rf "$previous"
    cp -a "$current" "$previous"
  fi
  rm -f "$current/.release"
}

# Unpack trio-odin.tar over the existing folders, which running containers have mounted. Remove the
# files of the previous release that this one does not have; other files stay.
unpack() {
  local new=$root/files.new file
  local -a except=()
  tar -tf trio-odin.tar | grep -v '/$' | sort >"$new"
  if [[ -e $current/.files ]]; then
    comm -23 "$current/.files" "$new" | (cd "$current" && xargs -r -d '\n' rm -f --)
  fi
  mv "$new" "$current/.files"
  for file in "${settings[@]}"; do
    except+=(--exclude="$file")
  done
  tar -xf trio-odin.tar -C "$current" "${except[@]}"
  tar -xf trio-odin.tar -C "$current" --skip-old-files "${settings[@]}"
}

# Replace the lines of .env by those of MACHINE.env with the same names.
set_environment() {
  local env=$current/ops/isolated/$machine/.env new=$machine.env
  (
    umask 077
    {
      [[ ! -e $env ]] || sed 's/=.*//; s/.*/^&=/' "$new" | grep -vf - "$env" || true
      cat "$new"
    } >"$env.new"
  )
  mv "$env.new" "$env"
}

# Only root can enter this folder; the containers' users read the files through their mounts.
unpack_secrets() {
  [[ -e $machine.secrets.tar ]] || return 0
  install -d -m 0700 "$current/ops/secrets"
  tar -xf "$machine.secrets.tar" -C "$current/ops/secrets" --no-same-owner
}

# The second server and HAProxy, as they exist now; Prometheus watches the folder.
unpack_targets() {
  [[ -e $machine.targets.tar ]] || return 0
  rm -rf "$current/ops/prometheus/targets/cloud"
  tar -xf "$machine.targets.tar" -C "$current/ops/prometheus/targets" --no-same-owner
}

remember_in_use() {
  rm -rf "$in_use"
  cp -a "$current/ops" "$in_use"
}

up() {
  compose up --detach --wait
}

# Compose notices a new image or a changed compose file, but not a change in a mounted file.
start() {
  # The operator or `nox -s capacity` starts a load.
  [[ $machine != runner ]] || return 0
  local service services containers folder
  local -a changed=()
  containers=$(compose ps --all --quiet)
  [[ $containers ]] || remember_in_use
  services=$(compose config --services)
  for service in $services; do
    for folder in "$service" "secrets/$service"; do
      if [[ -d $current/ops/$folder ]] &&
        ! diff -rq "$current/ops/$folder" "$in_use/$folder" >/dev/null 2>&1; then
        changed+=("$service")
        break
      fi
    done
  done
  up
  # HAProxy reads its files again without cutting its clients.
  if [[ " ${changed[*]} " == *" haproxy "* ]]; then
    compose exec -T haproxy sh -c 'kill -USR2 1'
    mapfile -t changed < <(printf '%s\n' "${changed[@]}" | grep -vx haproxy)
  fi
  if ((${#changed[@]})); then
    compose restart "${changed[@]}"
    up
  fi
  remember_in_use
}

bring() { # RELEASE COMMAND…; the command obtains the image
  local release=$1
  shift
  mkdir -p "$current"
  keep_as_previous "$release"
  unpack
  unpack_secrets
  unpack_targets
  set_environment
  "$@"
  start
  echo "$release" >"$current/.release"
}

build_image() { # IMAGE REVISION
  docker build --quiet --tag "$1" --build-arg "REVISION=$2" "$current"
}

deploy() { # IMAGE REVISION build|pull
  # shellcheck disable=SC2064 # expand the machine now; that file has a password
  trap "rm -f trio-odin.tar '$machine.env' '$machine.secrets.tar' '$machine.targets.tar' release.sh" EXIT
  wait_for_docker
  case $3 in
    build) bring "$2 $1" build_image "$1" "$2" ;;
    pull) bring "$2 $1" docker pull --quiet "$1" ;;
    *) bring "$2 $1" true ;;
  esac
}

back() {
  [[ -d $previous ]] || fail "there is no release before this one"
  local folder
  folder=$(mktemp -d)
  # shellcheck disable=SC2064 # expand the folder now
  trap "rm -rf '$folder'" EXIT
  cd "$folder"
  tar -cf trio-odin.tar -C "$previous" --files-from="$previous/.files"
  grep '^TRIO_ODIN_IMAGE=' "$previous/ops/isolated/$machine/.env" >"$machine.env"
  # The image is still on the machine.
  bring "$(<"$previous/.release")" true
}

# By bash's own connection to HAProxy's admin socket, as there may be no socat. HAProxy answers with a
# text if something is wrong, and closes.
rotate() { # NODE STATE
  local said
  exec 3<>"/dev/tcp/${ODIN_HAPROXY:-127.0.0.1/8405}"
  echo "set server ws/$1 state $2" >&3
  said=$(timeout 10 cat <&3)
  [[ ! ${said//[[:space:]]/} ]] || fail "HAProxy: $said"
}

main() {
  local command=${1-} machine=${2-}
  case $command in
    deploy | start | back | rotate) ;;
    *) fail "deploy, start, rotate or back?" ;;
  esac
  case $machine in ws | backend | runner | proxy) ;; *) fail "ws, backend, runner or proxy?" ;; esac
  shift 2
  [[ $command != start ]] || wait_for_docker
  "$command" "$@"
}

main "$@"
