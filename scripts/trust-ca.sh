#!/bin/sh
# Install ghtap's CA among the roots of a Debian, Alpine or RHEL image, and print the variables that Python,
# Node, Java and git need besides.
#
# Usage: trust-ca.sh [CA.pem]        (default: /certs/ca.pem; run as root, for instance in a Dockerfile)
set -eu

ca=${1:-/certs/ca.pem}
if [ ! -r "$ca" ]; then
    echo "trust-ca.sh: $ca cannot be read; give the path of ghtap's ca.pem" >&2
    exit 1
fi
if ! grep -q 'BEGIN CERTIFICATE' "$ca"; then
    echo "trust-ca.sh: $ca is not a PEM certificate" >&2
    exit 1
fi

if [ -d /etc/pki/ca-trust/source/anchors ] && command -v update-ca-trust >/dev/null; then # RHEL, Fedora
    cp "$ca" /etc/pki/ca-trust/source/anchors/ghtap.pem
    update-ca-trust extract
    bundle=/etc/pki/tls/certs/ca-bundle.crt
elif command -v update-ca-certificates >/dev/null; then # Debian, Alpine
    mkdir -p /usr/local/share/ca-certificates
    cp "$ca" /usr/local/share/ca-certificates/ghtap.crt
    update-ca-certificates >/dev/null 2>&1
    bundle=/etc/ssl/certs/ca-certificates.crt
else
    echo "trust-ca.sh: neither update-ca-certificates nor update-ca-trust is here; install ca-certificates first" >&2
    exit 1
fi

# Java has roots of its own. keytool asks nothing with -noprompt; the password is the usual one.
if command -v keytool >/dev/null; then
    keytool -delete -cacerts -storepass changeit -alias ghtap >/dev/null 2>&1 || true
    keytool -importcert -noprompt -cacerts -storepass changeit -alias ghtap -file "$ca" >/dev/null 2>&1 ||
        echo "trust-ca.sh: Java's roots could not be changed; give Java -Djavax.net.ssl.trustStore=…/truststore.p12" >&2
fi

cat <<END
SSL_CERT_FILE=$bundle
CURL_CA_BUNDLE=$bundle
REQUESTS_CA_BUNDLE=$bundle
PIP_CERT=$bundle
GIT_SSL_CAINFO=$bundle
NODE_EXTRA_CA_CERTS=$ca
NODE_USE_ENV_PROXY=1
END
