#!/usr/bin/env bash
# Creates what NATS and its clients need to authenticate each other: passwords, a certificate, and a
# private authority that signs it; and the secrets of the monitoring. Creates only missing files; to
# renew the server's certificate, remove nats/cert.pem and run this script again.
#
#   ops/nats/secrets.sh [FOLDER]     default: ops/secrets, which git ignores
#
#   ca.key                            stays here; do not copy it to a machine
#   nats/{users.conf,cert.pem,key.pem,ca.pem}
#   ws/{nats_url,password,ca.pem}     each of these folders is mounted into one container; nats_url has
#                                     addresses alone: NATS_USER and NATS_PASSWORD_FILE are the login
#   publisher/{nats_url,password,ca.pem}
#   grafana/admin_password            GRAFANA_ADMIN_PASSWORD if that is set, at random otherwise
#   alertmanager/alert_webhook_url    ALERT_WEBHOOK_URL: where Alertmanager posts alerts to, as JSON
#   alertmanager/watchdog_webhook_url WATCHDOG_WEBHOOK_URL: a service that pages you when nothing comes
#                                     for some minutes; these three are replaced if they are set
#
# NATS_SERVERS has the names or addresses of the servers, with blanks between: `nats`, or those of a
# cluster, such as "10.128.0.21 10.128.0.22 10.128.0.23". They are remembered, and get into each
# nats_url and into the certificate, which is made anew for a further one.
#
# Only the folder itself is closed to other users. The containers' users have to read the files, and
# they reach a mounted folder without passing the one above it.
set -euo pipefail

folder=${1:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/secrets}
authority_days=3650
server_days=825
type openssl >/dev/null || { echo "secrets.sh: openssl is not installed" >&2 && exit 2; }
mkdir -p "$folder"
chmod 0700 "$folder"
mkdir -p "$folder"/{nats,ws,publisher,grafana,alertmanager}
cd "$folder"

# The servers of the last time, if none are named now.
if [[ ! ${NATS_SERVERS-} && -e ws/nats_url ]]; then
  NATS_SERVERS=$(tr , ' ' <ws/nats_url | sed 's|tls://||g; s|[^ ]*@||g; s|:4222||g')
fi
read -ra servers <<<"${NATS_SERVERS:-nats}"
# The names that clients use: compose's names of the service, and of the three of a cluster.
names=DNS:nats,DNS:nats-1,DNS:nats-2,DNS:nats-3,DNS:localhost,IP:127.0.0.1
for server in "${servers[@]}"; do
  kind=host
  case $server in
    *[!0-9.a-zA-Z-]* | -*) echo "secrets.sh: $server: not a name or an address of IPv4" >&2 && exit 2 ;;
    *[a-zA-Z]*) names+=,DNS:$server ;;
    *) names+=,IP:$server kind=ip ;;
  esac
  # A certificate that is not for this server is made anew; openssl exits with 0 either way.
  [[ ! -e nats/cert.pem ]] ||
    openssl x509 -in nats/cert.pem -noout "-check$kind" "$server" | grep -q 'does match' ||
    rm nats/cert.pem
done

new_key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)

if [[ ! -e ca.key ]]; then
  openssl req -x509 "${new_key[@]}" -keyout ca.key -out ca.pem -days $authority_days -sha256 \
    -subj "/CN=odin NATS authority" -addext keyUsage=critical,keyCertSign,cRLSign 2>/dev/null
  # Another authority signed it, so it is no longer valid.
  rm -f nats/cert.pem
fi

if [[ ! -e nats/cert.pem ]]; then
  openssl req "${new_key[@]}" -keyout nats/key.pem -out server.csr -subj /CN=nats 2>/dev/null
  openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out nats/cert.pem \
    -days $server_days -sha256 -extfile <(
      echo "subjectAltName=$names"
      echo keyUsage=critical,digitalSignature
      # The second is for a server of the cluster that connects to another one.
      echo extendedKeyUsage=serverAuth,clientAuth
      echo authorityKeyIdentifier=keyid
      echo subjectKeyIdentifier=hash
    ) 2>/dev/null
  rm -f server.csr ca.srl
fi

if [[ ! -e nats/users.conf ]]; then
  ws_password=$(openssl rand -hex 24)
  publisher_password=$(openssl rand -hex 24)
  echo "$ws_password" >ws/password
  echo "$publisher_password" >publisher/password
  cat >nats/users.conf <<CONF
authorization {
  users = [
    # The server creates or adapts the stream, and reads it. It publishes no events. The mirror of
    # the stream it may also delete: it makes a new one when the stream was made anew.
    {
      user: ws
      password: "$ws_password"
      permissions: {
        publish: {
          allow: [
            "\$JS.API.INFO", "\$JS.API.STREAM.NAMES", "\$JS.API.STREAM.INFO.>", "\$JS.API.STREAM.CREATE.>",
            "\$JS.API.STREAM.UPDATE.>", "\$JS.API.STREAM.MSG.GET.>", "\$JS.API.STREAM.DELETE.ODIN_TOKENS_NEWEST",
            "\$JS.API.CONSUMER.CREATE.>", "\$JS.API.CONSUMER.INFO.>", "\$JS.FC.>"
          ]
        }
        subscribe: ["odin.token.>", "_INBOX.>"]
      }
    }
    # The market publishes events, and reads only answers.
    {
      user: publisher
      password: "$publisher_password"
      permissions: { publish: ["odin.token.>"], subscribe: ["_INBOX.>"] }
    }
  ]
}
CONF
fi

for client in ws publisher; do
  # The first versions of this script kept the password in the URL alone.
  if [[ ! -e $client/password ]]; then
    password=$(sed -n "/user: $client\$/{n;s/.*password: \"\(.*\)\".*/\1/p}" nats/users.conf)
    if [[ ! $password ]]; then
      echo "secrets.sh: $PWD/nats/users.conf has no password of $client, and $client/password is not there: put it there" >&2
      exit 2
    fi
    echo "$password" >"$client/password"
  fi
  urls=
  for server in "${servers[@]}"; do
    urls+=${urls:+,}tls://$server:4222
  done
  # Keep the file if it is the same: what reads it is restarted otherwise.
  [[ -e $client/nats_url && $(<"$client/nats_url") == "$urls" ]] || echo "$urls" >"$client/nats_url"
  cp ca.pem "$client/ca.pem"
done
cp ca.pem nats/ca.pem

keep() { # FILE TEXT DEFAULT
  if [[ $2 ]]; then
    [[ -e $1 && $(<"$1") == "$2" ]] || echo "$2" >"$1"
  elif [[ ! -e $1 && $3 ]]; then
    echo "$3" >"$1"
  fi
}
keep grafana/admin_password "${GRAFANA_ADMIN_PASSWORD-}" "$(openssl rand -hex 16)"
keep alertmanager/alert_webhook_url "${ALERT_WEBHOOK_URL-}" ''
# Nobody: the discard port.
keep alertmanager/watchdog_webhook_url "${WATCHDOG_WEBHOOK_URL-}" http://127.0.0.1:9/
[[ -e alertmanager/alert_webhook_url ]] ||
  echo "secrets.sh: nobody gets alerts until ALERT_WEBHOOK_URL is set when this runs" >&2

chmod 0600 ca.key
for machine in nats ws publisher grafana alertmanager; do
  chmod 0755 "$machine"
  chmod 0644 "$machine"/*
done
