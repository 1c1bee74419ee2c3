#!/bin/sh
# Makes the certificates of a Dask cluster: a private authority, and one certificate each for the scheduler, the workers
# and the clients. Any holder of one of them may run code on the cluster: Dask checks nothing else.
#
#   make_certificates.sh FOLDER [DAYS]
#
# Keep ca.key where it was made: it is needed only to make more certificates, and on no machine of the cluster.
set -eu
umask 077

folder=${1:?usage: make_certificates.sh FOLDER [DAYS]}
days=${2:-365}
if [ -e "$folder/ca.key" ]; then
    echo "make_certificates.sh: $folder has an authority already; give another folder" >&2
    exit 2
fi
mkdir -p "$folder"
cd "$folder"

new_key() {
    openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"
}

new_key ca
openssl req -x509 -new -key ca.key -sha256 -days "$days" -subj "/CN=expertmine Dask authority" -out ca.pem \
    -addext "keyUsage=critical,keyCertSign,cRLSign"

sign() { # NAME PURPOSES
    new_key "$1"
    openssl req -new -key "$1.key" -sha256 -subj "/CN=expertmine $1" -out "$1.csr"
    printf '%s\n' "basicConstraints=critical,CA:FALSE" "keyUsage=critical,digitalSignature" "extendedKeyUsage=$2" \
        "subjectKeyIdentifier=hash" "authorityKeyIdentifier=keyid" >"$1.extensions"
    openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -sha256 -days "$days" \
        -extfile "$1.extensions" -out "$1.pem" 2>/dev/null
    rm "$1.csr" "$1.extensions"
}

# Workers call each other and are called; the scheduler calls workers; clients only call.
sign scheduler serverAuth,clientAuth
sign worker serverAuth,clientAuth
sign client clientAuth
rm -f ca.srl
chmod 644 ./*.pem
