#!/usr/bin/env bash
# Create, fill, stop and delete the plan's three machines on Google Cloud. See `instances.sh --help`.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
prices=$root/trio_odin/lab/model/prices.toml

# Names and machine types of the plan. Each key is also the name of a folder below ops/isolated.
declare -A name=([ws]=odin-ws [backend]=odin-backend [runner]=odin-runner)
declare -A machine_type=([ws]=e2-standard-2 [backend]=e2-small [runner]=e2-micro)
# In this order: the others need the back-end's NATS.
machines=(backend ws runner)
# The folder of the release on each machine, which release.sh keeps.
current=/srv/odin/current

: "${ZONE:=us-central1-a}" "${NETWORK:=odin}" "${SUBNET_RANGE:=10.10.0.0/24}"
: "${SECRETS:=$root/ops/secrets}"
dry_run=
assume_yes=

help() {
  cat <<TEXT
Usage: PROJECT=… $0 [--dry-run] [--yes] COMMAND [MACHINE…]

The plan's machines: ws (${machine_type[ws]}), backend (${machine_type[backend]}), \
runner (${machine_type[runner]}), or all, the default.

  create   create the network, the firewall and the machines that do not exist yet
  deploy   copy this commit to the machines and start the compose files of ops/isolated;
           settings that were changed there stay. Without TRIO_ODIN_IMAGE the image is built on
           each machine, which takes CPU from a running server: set it for one that has users
  stop     drain and stop the machines; after that only their disks cost money
  start    start stopped machines and what was deployed on them
  delete   delete the machines, after a question; with all, also the network and the firewall
  ips      print their addresses
  cost     print their cost a month, from $(basename "$prices"); makes no request

  --dry-run   print the commands that would be run, one on each line, and run none
  --yes       do not ask before delete

Environment:
  PROJECT                  the Google Cloud project; required for every command but cost
  OPERATOR_CIDR            for create: the network that may reach Grafana and the publisher
  ALERT_WEBHOOK_URL        for the first deploy of backend: where alerts are sent
  WATCHDOG_WEBHOOK_URL     the same for a service that pages you when nothing comes
  GRAFANA_ADMIN_PASSWORD   the same; at random, and in SECRETS/grafana, if it is not set
  RUNBOOKS_URL             for deploy of backend: where docs/runbooks/alerts.md is published
  ZONE, NETWORK            ${ZONE}, ${NETWORK}
  SUBNET_RANGE             ${SUBNET_RANGE}
  SECRETS                  for deploy: folder of passwords and certificates for NATS and its clients,
                           created if it does not exist; ${SECRETS}
  TRIO_ODIN_IMAGE          for deploy: an image to pull instead of one built on the machine
TEXT
}

fail() {
  echo "instances.sh: $*" >&2
  exit 2
}

# Run a command that changes something; with --dry-run only print it, quoted for a shell.
change() {
  if [[ $dry_run ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

g() {
  change gcloud --project="$PROJECT" --quiet "$@"
}

ask() {
  gcloud --project="$PROJECT" --quiet "$@"
}

# Whether something exists. If the query fails, for example without a sign-in, the script ends. With
# --dry-run nothing exists, so everything is printed.
is_there() { # NAME WHAT…
  [[ ! $dry_run ]] || return 1
  local found
  found=$(ask "${@:2}" list --filter="name=$1" --format="value(name)") || exit
  [[ $found ]]
}

# The same before a delete; prints a line if there is nothing to delete.
is_left() { # NAME WHAT…
  [[ $dry_run ]] || is_there "$@" || {
    echo "$1: not there"
    return 1
  }
}

address() { # MACHINE internal|external; nothing if there is none
  local field='networkInterfaces[0].networkIP'
  [[ $2 == internal ]] || field='networkInterfaces[0].accessConfigs[0].natIP'
  if [[ $dry_run ]]; then
    echo "<$2 address of ${name[$1]}>"
  else
    ask compute instances list --zones="$ZONE" --filter="name=${name[$1]}" --format="value($field)"
  fi
}

# Connect through Google's proxy, which has its own sign-in: port 22 is open only to it.
on() { # MACHINE COMMAND
  g compute ssh "${name[$1]}" --zone="$ZONE" --tunnel-through-iap --command="$2"
}

# Wait until a machine that was just created or started accepts SSH.
reach() { # MACHINE
  local left
  for ((left = 20; left; left--)); do
    ! on "$1" true || return 0
    echo "${name[$1]}: not reached, $((left - 1)) tries left" >&2
    sleep 5
  done
  fail "${name[$1]} lets nobody in by SSH"
}

rule() { # NAME TARGET SOURCE PORTS
  is_there "$NETWORK-$1" compute firewall-rules && return
  g compute firewall-rules create "$NETWORK-$1" --network="$NETWORK" --direction=INGRESS \
    --target-tags="$2" "$3" --allow="$4"
}

create_network() {
  [[ ${OPERATOR_CIDR-} ]] || fail "create needs OPERATOR_CIDR, such as 203.0.113.7/32"
  # Not the network `default`: its rules open port 22 to everybody.
  is_there "$NETWORK" compute networks ||
    g compute networks create "$NETWORK" --subnet-mode=custom
  is_there "$NETWORK" compute networks subnets --regions="${ZONE%-*}" ||
    g compute networks subnets create "$NETWORK" --network="$NETWORK" \
      --region="${ZONE%-*}" --range="$SUBNET_RANGE"
  local all=${name[ws]},${name[backend]},${name[runner]}
  rule ssh "$all" --source-ranges=35.235.240.0/20 tcp:22
  rule clients "${name[ws]}" --source-ranges=0.0.0.0/0 tcp:3004
  # odin-proxy: HAProxy on a separate machine, created by hand, asks /ready there. Its clients connect
  # like all others.
  rule metrics "${name[ws]}" --source-tags="${name[backend]},${name[runner]},odin-proxy" tcp:3005
  rule backend "${name[backend]}" --source-tags="${name[ws]}" tcp:4222,tcp:3100
  rule control "${name[backend]}" --source-tags="${name[runner]}" tcp:3003
  rule operator "${name[backend]}" --source-ranges="$OPERATOR_CIDR" tcp:3010,tcp:3003
}

create() {
  create_network
  local machine metadata
  local -a named
  local -A sysctl=([ws]=60-trio-odin.conf [runner]=61-trio-odin-clients.conf)
  for machine in "$@"; do
    is_there "${name[$machine]}" compute instances --zones="$ZONE" && continue
    metadata=startup-script=$here/startup.sh
    named=()
    if [[ ${sysctl[$machine]-} ]]; then
      metadata+=,sysctl=$root/ops/sysctl/${sysctl[$machine]}
      named=(--metadata="sysctl-name=${sysctl[$machine]}")
    fi
    g compute instances create "${name[$machine]}" --zone="$ZONE" \
      --machine-type="${machine_type[$machine]}" \
      --image-family=debian-13 --image-project=debian-cloud \
      --boot-disk-size=20GB --network="$NETWORK" --subnet="$NETWORK" --tags="${name[$machine]}" \
      --no-service-account --no-scopes --metadata-from-file="$metadata" "${named[@]}"
  done
}

# The variables for the compose file of a machine; see the .env.example beside it.
environment_of() { # MACHINE IMAGE
  local other
  local -A at
  for other in backend ws; do
    at[$other]=$(address "$other" internal) || exit
    [[ ${at[$other]} ]] || fail "${name[$other]} is not there: create it first"
  done
  echo "TRIO_ODIN_IMAGE=$2"
  echo "INSTANCE_NAME=${name[$1]}"
  echo "BACKEND_INTERNAL_IP=${at[backend]}"
  echo "WS_INTERNAL_IP=${at[ws]}"
  [[ $1 != backend ]] || echo "RUNBOOKS_URL=$RUNBOOKS_URL"
}

check_addresses() {
  [[ ${ALERT_WEBHOOK_URL-} || -e $SECRETS/alertmanager/alert_webhook_url ]] ||
    fail "deploy of backend needs ALERT_WEBHOOK_URL, where alerts are sent"
  [[ ${RUNBOOKS_URL-} =~ ^https?://[^[:space:]\'\"#]+$ ]] ||
    fail "deploy of backend needs RUNBOOKS_URL, such as https://docs.odin.example/runbooks/alerts.md"
}

# The files that ops/nats/secrets.sh created for a machine; the authority's key stays here.
secrets_of() { # MACHINE
  local -A folders=([backend]='nats publisher grafana alertmanager' [ws]=ws)
  local -a chosen
  read -ra chosen <<<"${folders[$1]}"
  tar -cf - -C "$SECRETS" "${chosen[@]}"
}

deploy() {
  [[ " $* " != *" backend "* ]] || check_addresses
  # All machines need the same secrets, so they are created once, here, and kept.
  [[ $dry_run ]] || "$root/ops/nats/secrets.sh" "$SECRETS"
  local revision machine image how=build folder
  local -a files
  revision=$(git -C "$root" rev-parse --short=12 HEAD)
  folder=$(mktemp -d)
  # shellcheck disable=SC2064 # expand the folder now
  trap "rm -rf '$folder'" EXIT
  # The commit, without uncommitted files.
  git -C "$root" archive --output="$folder/trio-odin.tar" HEAD
  tar -xOf "$folder/trio-odin.tar" ops/cloud/release.sh >"$folder/release.sh"
  image=${TRIO_ODIN_IMAGE:-trio-odin:$revision}
  [[ ! ${TRIO_ODIN_IMAGE-} ]] || how=pull
  for machine in "$@"; do
    (umask 077 && environment_of "$machine" "$image" >"$folder/$machine.env")
    files=("$folder/trio-odin.tar" "$folder/release.sh" "$folder/$machine.env")
    if [[ $machine != runner ]]; then
      files+=("$folder/$machine.secrets.tar")
      [[ $dry_run ]] || (umask 077 && secrets_of "$machine" >"$folder/$machine.secrets.tar")
    fi
    reach "$machine"
    g compute scp --zone="$ZONE" --tunnel-through-iap "${files[@]}" "${name[$machine]}:/tmp/"
    on "$machine" "cd /tmp && sudo bash release.sh deploy $machine $image $revision $how"
  done
}

stop() {
  local machine file=$current/ops/isolated/ws/compose.yml
  for machine in "$@"; do
    # The drain takes longer than dockerd waits at a shutdown. If it fails, stop the machine anyway:
    # that was the command, and a running machine costs money.
    [[ $machine != ws ]] ||
      on ws "[ ! -e $file ] || sudo docker compose --file $file stop" ||
      echo "${name[ws]}: not drained" >&2
    g compute instances stop "${name[$machine]}" --zone="$ZONE"
  done
}

start() {
  local machine script=$current/ops/cloud/release.sh
  for machine in "$@"; do
    g compute instances start "${name[$machine]}" --zone="$ZONE"
    # The runner has no running service. On ws Docker starts nothing by itself after a stop.
    [[ $machine != runner ]] || continue
    reach "$machine"
    on "$machine" "[ ! -e $script ] || sudo bash $script start $machine"
  done
}

delete() {
  if [[ ! $assume_yes && ! $dry_run ]]; then
    local answer=
    read -r -p "Delete $* in $PROJECT with their disks? Type yes: " answer || true
    [[ $answer == yes ]] || fail "nothing deleted"
  fi
  local machine one
  for machine in "$@"; do
    if is_left "${name[$machine]}" compute instances --zones="$ZONE"; then
      g compute instances delete "${name[$machine]}" --zone="$ZONE"
    fi
  done
  [[ $# == "${#machines[@]}" ]] || return 0
  for one in ssh clients metrics backend control operator; do
    if is_left "$NETWORK-$one" compute firewall-rules; then
      g compute firewall-rules delete "$NETWORK-$one"
    fi
  done
  if is_left "$NETWORK" compute networks subnets --regions="${ZONE%-*}"; then
    g compute networks subnets delete "$NETWORK" --region="${ZONE%-*}"
  fi
  if is_left "$NETWORK" compute networks; then
    g compute networks delete "$NETWORK"
  fi
}

ips() {
  local machine internal external
  for machine in "$@"; do
    internal=$(address "$machine" internal) || exit
    external=$(address "$machine" external) || exit
    printf '%-13s internal %-15s external %s\n' "${name[$machine]}" \
      "${internal:-none}" "${external:-none}"
  done
}

# The prices that `trio-odin plan` uses; they are only in that file.
monthly_usd() { # TYPE
  awk -v type="\"$1\"" '/^\[/ {is_it = 0} $1 == "name" {is_it = $3 == type}
    is_it && $1 == "monthly_usd" {print $3}' "$prices"
}

cost() {
  local machine usd sum=0
  for machine in "$@"; do
    usd=$(monthly_usd "${machine_type[$machine]}")
    [[ $usd ]] || fail "no price of ${machine_type[$machine]} in $prices"
    printf '%-13s %-14s ~%4d USD a month\n' "${name[$machine]}" "${machine_type[$machine]}" "$usd"
    sum=$((sum + usd))
  done
  printf '%-28s ~%4d USD a month, as of %s\n' together "$sum" \
    "$(awk '$1 == "date" {gsub("\"", ""); print $3}' "$prices")"
}

main() {
  local command='' machine
  local -a chosen=()
  while (($#)); do
    case $1 in
      -h | --help) help && exit ;;
      --dry-run) dry_run=yes ;;
      --yes) assume_yes=yes ;;
      -*) fail "$1 is no option; see --help" ;;
      create | deploy | stop | start | delete | ips | cost)
        [[ ! $command ]] || fail "one command at a time: $command or $1"
        command=$1
        ;;
      all) chosen=("${machines[@]}") ;;
      *)
        [[ ${name[$1]-} ]] || fail "$1 is no command and no machine; see --help"
        chosen+=("$1")
        ;;
    esac
    shift
  done
  [[ $command ]] || fail "say what to do; see --help"
  ((${#chosen[@]})) || chosen=("${machines[@]}")
  if [[ $command != cost ]]; then
    [[ ${PROJECT-} ]] || fail "PROJECT is not set: the Google Cloud project to act in"
    [[ $dry_run ]] || command -v gcloud >/dev/null || fail "gcloud is not installed"
  fi
  "$command" "${chosen[@]}"
}

main "$@"
