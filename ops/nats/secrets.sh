#!/usr/bin/env bash
# Creates what NATS and its clients need to authenticate each other: passwords, a certificate, and a
# private authority that signs it. Creates only missing files; to renew the server's certificate,
# remove nats/cert.pem and run this script again.
#
#   ops/nats/secrets.sh [FOLDER]     default: ops/secrets, which git ignores
#
#   ca.key                            stays here; do not copy it to a machine
#   nats/{users.conf,cert.pem,key.pem}
#   ws/{nats_url,ca.pem}              each of these folders is mounted into one container
#   publisher/{nats_url,ca.pem}
#
# Only the folder itself is closed to other users. The containers' users have to read the files, and
# they reach a mounted folder without passing the one above it.
set -euo pipefail

folder=${1:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/secrets}
authority_days=3650
server_days=825
# The names that clients use: compose's name of the service.
names=DNS:nats,DNS:localhost,IP:127.0.0.1

type openssl >/dev/null || { echo "secrets.sh: openssl is not installed" >&2 && exit 2; }
mkdir -p "$folder"
chmod 0700 "$folder"
mkdir -p "$folder"/{nats,ws,publisher}
cd "$folder"

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
      echo extendedKeyUsage=serverAuth
      echo authorityKeyIdentifier=keyid
      echo subjectKeyIdentifier=hash
    ) 2>/dev/null
  rm -f server.csr ca.srl
fi

if [[ ! -e nats/users.conf ]]; then
  ws_password=$(openssl rand -hex 24)
  publisher_password=$(openssl rand -hex 24)
  echo "tls://ws:$ws_password@nats:4222" >ws/nats_url
  echo "tls://publisher:$publisher_password@nats:4222" >publisher/nats_url
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
  cp ca.pem "$client/ca.pem"
done
chmod 0600 ca.key
chmod 0755 nats ws publisher
chmod 0644 nats/* ws/* publisher/*
