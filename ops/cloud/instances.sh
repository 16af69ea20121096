#!/usr/bin/env bash
# Create, fill, stop and delete the plan's machines on Google Cloud. See `instances.sh --help`.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
prices=$root/trio_odin/lab/model/prices.toml

# Names and machine types of the plan; ws-2 is its second server, for blue-green and for rolling.
declare -A name=(
  [ws]=${WS_NAME:-odin-ws-go} [ws-2]=${WS_2_NAME:-odin-ws-go-v2}
  [backend]=${BACKEND_NAME:-odin-backend} [runner]=${TEST_RUNNER_NAME:-odin-test-runner}
  [proxy]=${PROXY_NAME:-odin-proxy} [proxy-2]=${PROXY_2_NAME:-odin-proxy-2}
)
: "${WS_GO_MACHINE_TYPE:=e2-standard-2}" "${BACKEND_MACHINE_TYPE:=e2-small}"
: "${TEST_RUNNER_MACHINE_TYPE:=e2-micro}" "${PROXY_MACHINE_TYPE:=e2-standard-2}"
declare -A machine_type=(
  [ws]=$WS_GO_MACHINE_TYPE [ws-2]=${WS_2_MACHINE_TYPE:-$WS_GO_MACHINE_TYPE}
  [backend]=$BACKEND_MACHINE_TYPE [runner]=$TEST_RUNNER_MACHINE_TYPE
  [proxy]=$PROXY_MACHINE_TYPE [proxy-2]=$PROXY_MACHINE_TYPE
)
# The folder below ops/isolated.
declare -A role=([ws]=ws [ws-2]=ws [backend]=backend [runner]=runner [proxy]=proxy [proxy-2]=proxy)
# The label `instance` of figures and logs: it stays when a machine gets another name.
declare -A instance=(
  [ws]=odin-ws [ws-2]=odin-ws-2 [backend]=odin-backend [runner]=odin-runner
  [proxy]=odin-proxy [proxy-2]=odin-proxy-2
)
# In this order: the others need the back-end's NATS.
machines=(backend ws runner)
every_machine=(backend ws ws-2 proxy proxy-2 runner)
# The folder of the release on each machine, which release.sh keeps.
current=/srv/odin/current

: "${ZONE:=us-central1-a}" "${NETWORK:=odin}" "${SUBNET_RANGE:=10.10.0.0/24}" "${DNS_TTL:=60}"
: "${SECRETS:=$root/ops/secrets}"
dry_run=
assume_yes=
# Whether all machines are meant, and so what they share.
is_all=

help() {
  cat <<TEXT
Usage: PROJECT=… $0 [--dry-run] [--yes] COMMAND [MACHINE…]

The plan's machines: ws (${machine_type[ws]}), backend (${machine_type[backend]}), \
runner (${machine_type[runner]}), or all, the default.
For two servers: ws-2, and in front of both proxy and proxy-2 (${machine_type[proxy]}) with HAProxy.

  create   create the network, the firewall and the machines that do not exist yet
  deploy   copy this commit to the machines and start the compose files of ops/isolated;
           settings that were changed there stay. Without TRIO_ODIN_IMAGE the image is built on
           each machine, which takes CPU from a running server: set it for one that has users
  roll     deploy ws and ws-2 one after the other; HAProxy sends nobody to the one that is away
  balance  create the balancer in front of proxy and proxy-2, with an address of its own
  dns      let DNS_NAME be the address of the machines named, or of the balancer:
           \`dns ws-2\` after blue-green, \`dns ws\` back, \`dns balancer\`
  resize   stop the machines, give them the machine type that is set now, and start them;
           deploy them afterwards, so that the server gets the limits of the new type
  stop     drain and stop the machines; after that only their disks cost money
  start    start stopped machines and what was deployed on them
  delete   delete the machines, after a question; with all, also ws-2, the proxies, the balancer, the
           network and the firewall
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
  DNS_ZONE, DNS_NAME       for dns: the zone of Cloud DNS, and the name, such as ws.odin.example.
  DNS_TTL                  seconds that resolvers keep the address; ${DNS_TTL}
  WS_GO_MACHINE_TYPE, BACKEND_MACHINE_TYPE, TEST_RUNNER_MACHINE_TYPE, PROXY_MACHINE_TYPE
                           ${WS_GO_MACHINE_TYPE}, ${BACKEND_MACHINE_TYPE}, ${TEST_RUNNER_MACHINE_TYPE}, \
${PROXY_MACHINE_TYPE}; WS_2_MACHINE_TYPE: as the first
  WS_NAME, WS_2_NAME, BACKEND_NAME, TEST_RUNNER_NAME, PROXY_NAME, PROXY_2_NAME
                           ${name[ws]}, ${name[ws-2]}, ${name[backend]}, ${name[runner]},
                           ${name[proxy]}, ${name[proxy-2]}
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
is_there() { # NAME WHAT… OPTION…
  [[ ! $dry_run ]] || return 1
  local found one
  local -a what=() options=()
  # gcloud takes the options of `list` only after that word.
  for one in "${@:2}"; do
    if [[ $one == -* ]]; then options+=("$one"); else what+=("$one"); fi
  done
  found=$(ask "${what[@]}" list "${options[@]}" --filter="name=$1" --format="value(name)") || exit
  [[ $found ]]
}

# The same before a delete; prints a line if there is nothing to delete.
is_left() { # NAME WHAT… OPTION…
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
  # Tags, not names: a machine that is renamed or added needs no other rules.
  local n=$NETWORK
  rule ssh "$n-ws,$n-backend,$n-runner,$n-proxy" --source-ranges=35.235.240.0/20 tcp:22
  rule clients "$n-ws" --source-ranges=0.0.0.0/0 tcp:3004
  # HAProxy asks /ready there. Its clients connect like all others.
  rule metrics "$n-ws" --source-tags="$n-backend,$n-runner,$n-proxy" tcp:3005
  rule backend "$n-backend" --source-tags="$n-ws" tcp:4222,tcp:3100
  rule control "$n-backend" --source-tags="$n-runner" tcp:3003
  rule operator "$n-backend" --source-ranges="$OPERATOR_CIDR" tcp:3010,tcp:3003
  if [[ " $* " == *" proxy"* ]]; then
    rule public "$n-proxy" --source-ranges=0.0.0.0/0 tcp:443,tcp:80
    rule figures "$n-proxy" --source-tags="$n-backend" tcp:8404
    rule logs "$n-backend" --source-tags="$n-proxy" tcp:3100
  fi
}

create() {
  create_network "$@"
  local machine metadata
  local -a named
  local -A sysctl=(
    [ws]=60-trio-odin.conf [proxy]=60-trio-odin.conf [runner]=61-trio-odin-clients.conf
  )
  for machine in "$@"; do
    is_there "${name[$machine]}" compute instances --zones="$ZONE" && continue
    metadata=startup-script=$here/startup.sh
    named=()
    if [[ ${sysctl[${role[$machine]}]-} ]]; then
      metadata+=,sysctl=$root/ops/sysctl/${sysctl[${role[$machine]}]}
      named=(--metadata="sysctl-name=${sysctl[${role[$machine]}]}")
    fi
    g compute instances create "${name[$machine]}" --zone="$ZONE" \
      --machine-type="${machine_type[$machine]}" \
      --image-family=debian-13 --image-project=debian-cloud \
      --boot-disk-size=20GB --network="$NETWORK" --subnet="$NETWORK" \
      --tags="$NETWORK-${role[$machine]}" \
      --no-service-account --no-scopes --metadata-from-file="$metadata" "${named[@]}"
  done
}

# An address that the files of a machine name.
needed_address() { # MACHINE
  local found
  found=$(address "$1" internal) || exit
  [[ $found ]] || fail "${name[$1]} is not there: create it first"
  echo "$found"
}

# The variables for the compose file of a machine; see the .env.example beside it.
environment_of() { # MACHINE IMAGE
  local backend ws second own mib
  backend=$(needed_address backend) || exit
  ws=$(needed_address ws) || exit
  echo "TRIO_ODIN_IMAGE=$2"
  echo "INSTANCE_NAME=${instance[$1]}"
  echo "BACKEND_INTERNAL_IP=$backend"
  case $1 in
    ws-2) own=$(needed_address ws-2) && echo "WS_INTERNAL_IP=$own" || exit ;;
    proxy*)
      second=$(needed_address ws-2) && own=$(needed_address "$1") || exit
      printf '%s\n' "WS1_ADDR=$ws:3004" "WS2_ADDR=$second:3004" "PROXY_INTERNAL_IP=$own"
      ;;
    *) echo "WS_INTERNAL_IP=$ws" ;;
  esac
  [[ $1 != backend ]] || echo "RUNBOOKS_URL=$RUNBOOKS_URL"
  if [[ ${role[$1]} == ws ]]; then
    # The plan's share of the machine's memory, 7 of 8 GB.
    mib=$(of_machine "${machine_type[$1]}" memory_mib)
    [[ $mib ]] || fail "${machine_type[$1]} is not in $prices"
    echo "WS_LIMIT_MEMORY=$((mib * 7 / 8))M"
  fi
}

# Whom Prometheus asks beyond ops/prometheus/targets: the second server and HAProxy, if they exist.
targets_of_cloud() { # FOLDER
  local machine port job found
  mkdir -p "$1/cloud"
  : >"$1/cloud/.keep"
  for machine in ws-2 proxy proxy-2; do
    found=$(address "$machine" internal) || exit
    [[ $found ]] || continue
    port=3005 job=ws
    [[ $machine == ws-2 ]] || port=8404 job=haproxy
    printf -- '- targets: ["%s:%s"]\n  labels: {instance: %s}\n' "$found" "$port" \
      "${instance[$machine]}" >"$1/cloud/$job-${machine}.yml"
  done
  tar -cf - -C "$1" cloud
}

check_addresses() {
  [[ ${ALERT_WEBHOOK_URL-} || -e $SECRETS/alertmanager/alert_webhook_url ]] ||
    fail "deploy of backend needs ALERT_WEBHOOK_URL, where alerts are sent"
  [[ ${RUNBOOKS_URL-} =~ ^https?://[^[:space:]\'\"#]+$ ]] ||
    fail "deploy of backend needs RUNBOOKS_URL, such as https://docs.odin.example/runbooks/alerts.md"
}

# The files that ops/nats/secrets.sh created for a machine; the authority's key stays here.
secrets_of() { # MACHINE
  local -A folders=([backend]='nats publisher grafana alertmanager' [ws]=ws [proxy]=haproxy)
  local -a chosen
  read -ra chosen <<<"${folders[${role[$1]}]}"
  tar -cf - -C "$SECRETS" "${chosen[@]}"
}

deploy() {
  [[ " $* " != *" backend "* ]] || check_addresses
  [[ $dry_run || " $* " != *" proxy"* ]] || compgen -G "$SECRETS/haproxy/*.pem" >/dev/null ||
    fail "deploy of proxy needs a certificate: ops/haproxy/certificate.sh install …"
  # All machines need the same secrets, so they are created once, here, and kept.
  [[ $dry_run ]] || "$root/ops/nats/secrets.sh" "$SECRETS"
  local revision machine image from=build how folder
  local -a files
  revision=$(git -C "$root" rev-parse --short=12 HEAD)
  folder=$(mktemp -d)
  # shellcheck disable=SC2064 # expand the folder now
  trap "rm -rf '$folder'" EXIT
  # The commit, without uncommitted files.
  git -C "$root" archive --output="$folder/trio-odin.tar" HEAD
  tar -xOf "$folder/trio-odin.tar" ops/cloud/release.sh >"$folder/release.sh"
  image=${TRIO_ODIN_IMAGE:-trio-odin:$revision}
  [[ ! ${TRIO_ODIN_IMAGE-} ]] || from=pull
  local as
  for machine in "$@"; do
    as=${role[$machine]}
    (umask 077 && environment_of "$machine" "$image" >"$folder/$as.env")
    files=("$folder/trio-odin.tar" "$folder/release.sh" "$folder/$as.env")
    if [[ $as != runner ]]; then
      files+=("$folder/$as.secrets.tar")
      [[ $dry_run ]] || (umask 077 && secrets_of "$machine" >"$folder/$as.secrets.tar")
    fi
    if [[ $as == backend ]]; then
      files+=("$folder/$as.targets.tar")
      [[ $dry_run ]] || targets_of_cloud "$folder/targets" >"$folder/$as.targets.tar"
    fi
    reach "$machine"
    g compute scp --zone="$ZONE" --tunnel-through-iap "${files[@]}" "${name[$machine]}:/tmp/"
    how=$from
    # Only HAProxy's own image runs there.
    [[ $as != proxy ]] || how=none
    on "$machine" "cd /tmp && sudo bash release.sh deploy $as $image $revision $how"
  done
}

# At both HAProxy: drain or ready.
rotate() { # STATE MACHINE
  local node="ws-1" proxy
  [[ $2 == ws ]] || node="ws-2"
  for proxy in proxy proxy-2; do
    on "$proxy" "sudo bash $current/ops/cloud/release.sh rotate proxy $node $1"
  done
}

roll() {
  local machine
  for machine in ws ws-2; do
    rotate drain "$machine"
    # A process of its own: bash would ignore failures in a function that `if` calls.
    if ! "${BASH_SOURCE[0]}" ${dry_run:+--dry-run} deploy "$machine"; then
      rotate ready "$machine"
      fail "${name[$machine]}: not deployed. HAProxy sends clients to it once it is ready"
    fi
    rotate ready "$machine"
  done
}

# A balancer that passes TCP through: HAProxy ends TLS and sees the clients' addresses.
balance() {
  local n=$NETWORK region=${ZONE%-*} proxy
  local -a regional=(--region="$region")
  is_there "$n-public" compute addresses --regions="$region" ||
    g compute addresses create "$n-public" "${regional[@]}"
  is_there "$n-proxy" compute health-checks --regions="$region" ||
    g compute health-checks create http "$n-proxy" "${regional[@]}" --port=80 --request-path=/ready \
      --check-interval=2s --timeout=2s --unhealthy-threshold=2 --healthy-threshold=2
  if ! is_there "$n-proxies" compute instance-groups unmanaged --zones="$ZONE"; then
    g compute instance-groups unmanaged create "$n-proxies" --zone="$ZONE"
    for proxy in proxy proxy-2; do
      g compute instance-groups unmanaged add-instances "$n-proxies" --zone="$ZONE" \
        --instances="${name[$proxy]}"
    done
  fi
  if ! is_there "$n-proxies" compute backend-services --regions="$region"; then
    g compute backend-services create "$n-proxies" "${regional[@]}" --protocol=TCP \
      --load-balancing-scheme=EXTERNAL --health-checks="$n-proxy" --health-checks-region="$region"
    g compute backend-services add-backend "$n-proxies" "${regional[@]}" \
      --instance-group="$n-proxies" --instance-group-zone="$ZONE"
  fi
  is_there "$n-public" compute forwarding-rules --regions="$region" ||
    g compute forwarding-rules create "$n-public" "${regional[@]}" --ports=80,443 \
      --load-balancing-scheme=EXTERNAL --address="$n-public" --backend-service="$n-proxies"
}

unbalance() {
  local n=$NETWORK region=${ZONE%-*} what
  # In this order: each is used by the one before.
  for what in forwarding-rules:public backend-services:proxies health-checks:proxy addresses:public; do
    if is_left "$n-${what#*:}" compute "${what%:*}" --regions="$region"; then
      g compute "${what%:*}" delete "$n-${what#*:}" --region="$region"
    fi
  done
  if is_left "$n-proxies" compute instance-groups unmanaged --zones="$ZONE"; then
    g compute instance-groups unmanaged delete "$n-proxies" --zone="$ZONE"
  fi
}

public_address() { # MACHINE, or balancer
  if [[ $1 != balancer ]]; then
    address "$1" external
  elif [[ $dry_run ]]; then
    echo '<address of the balancer>'
  else
    ask compute addresses list --filter="name=$NETWORK-public" --format='value(address)'
  fi
}

dns() {
  [[ ${DNS_ZONE-} && ${DNS_NAME-} ]] ||
    fail "dns needs DNS_ZONE and DNS_NAME, such as odin-example and ws.odin.example."
  local machine found addresses='' verb=create full=${DNS_NAME%.}.
  for machine in "$@"; do
    found=$(public_address "$machine") || exit
    [[ $found ]] || fail "${name[$machine]-the balancer} has no address: create it first"
    addresses+=${addresses:+,}$found
  done
  ! is_there "$full" dns record-sets --zone="$DNS_ZONE" || verb=update
  g dns record-sets $verb "$full" --zone="$DNS_ZONE" --type=A --ttl="$DNS_TTL" \
    --rrdatas="$addresses"
  echo "$full: $addresses; resolvers that know another address keep it for $DNS_TTL s and more" >&2
}

resize() {
  local machine
  for machine in "$@"; do
    stop "$machine"
    g compute instances set-machine-type "${name[$machine]}" --zone="$ZONE" \
      --machine-type="${machine_type[$machine]}"
    start "$machine"
  done
}

stop() {
  local machine file=$current/ops/isolated/ws/compose.yml
  for machine in "$@"; do
    # The drain takes longer than dockerd waits at a shutdown. If it fails, stop the machine anyway:
    # that was the command, and a running machine costs money.
    [[ ${role[$machine]} != ws ]] ||
      on "$machine" "[ ! -e $file ] || sudo docker compose --file $file stop" ||
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
    on "$machine" "[ ! -e $script ] || sudo bash $script start ${role[$machine]}"
  done
}

delete() {
  [[ ! $is_all ]] || set -- "${every_machine[@]}"
  if [[ ! $assume_yes && ! $dry_run ]]; then
    local answer=
    read -r -p "Delete $*${is_all:+, the network and its rules} in $PROJECT with their disks? Type yes: " answer || true
    [[ $answer == yes ]] || fail "nothing deleted"
  fi
  local machine one
  [[ ! $is_all ]] || unbalance
  for machine in "$@"; do
    if is_left "${name[$machine]}" compute instances --zones="$ZONE"; then
      g compute instances delete "${name[$machine]}" --zone="$ZONE"
    fi
  done
  [[ $is_all ]] || return 0
  for one in ssh clients metrics backend control operator public figures logs; do
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
    printf '%-16s internal %-15s external %s\n' "${name[$machine]}" \
      "${internal:-none}" "${external:-none}"
  done
}

# The prices that `trio-odin plan` uses; they are only in that file.
of_machine() { # TYPE KEY
  awk -v type="\"$1\"" -v key="$2" '/^\[/ {is_it = 0} $1 == "name" {is_it = $3 == type}
    is_it && $1 == key {print $3}' "$prices"
}

cost() {
  local machine usd sum=0
  for machine in "$@"; do
    usd=$(of_machine "${machine_type[$machine]}" monthly_usd)
    [[ $usd ]] || fail "no price of ${machine_type[$machine]} in $prices"
    printf '%-16s %-14s ~%4d USD a month\n' "${name[$machine]}" "${machine_type[$machine]}" "$usd"
    sum=$((sum + usd))
  done
  printf '%-31s ~%4d USD a month, as of %s\n' together "$sum" \
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
      create | deploy | roll | balance | dns | resize | stop | start | delete | ips | cost)
        [[ ! $command ]] || fail "one command at a time: $command or $1"
        command=$1
        ;;
      all) chosen+=("${machines[@]}") is_all=yes ;;
      balancer)
        [[ $command == dns ]] || fail "balancer is for dns only; see --help"
        chosen+=(balancer)
        ;;
      *)
        [[ ${name[$1]-} ]] || fail "$1 is no command and no machine; see --help"
        chosen+=("$1")
        ;;
    esac
    shift
  done
  [[ $command ]] || fail "say what to do; see --help"
  case $command in
    roll | balance) ((!${#chosen[@]})) || fail "$command takes no machine: it is about all of its kind" ;;
    dns)
      ((${#chosen[@]})) || fail "dns needs a machine, or balancer"
      [[ ! $is_all ]] || fail "all is not for dns: name the machines that clients connect to"
      ;;
    *) ((${#chosen[@]})) || chosen=("${machines[@]}") is_all=yes ;;
  esac
  if [[ $command != cost ]]; then
    [[ ${PROJECT-} ]] || fail "PROJECT is not set: the Google Cloud project to act in"
    [[ $dry_run ]] || command -v gcloud >/dev/null || fail "gcloud is not installed"
  fi
  "$command" "${chosen[@]}"
}

main "$@"
