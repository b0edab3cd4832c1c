#!/usr/bin/env bash
# Fetches Debian's packages and unpacks them here: nothing is installed, and no service is started.
set -euo pipefail
apt-get download -q rsyslog rsyslog-elasticsearch libestr0 libfastjson4 \
    syslog-ng-core syslog-ng-mod-http libivykis0 libnet1 libjson-c5 libpcre3
for package in *.deb; do
    dpkg-deb -x "$package" root
done
ln -s root/usr/sbin/rsyslogd root/usr/sbin/syslog-ng .
ln -s root/usr/lib/*/rsyslog rsyslog
ln -s root/usr/lib/syslog-ng/*/ syslog-ng-modules
mkdir lib
find "$PWD/root/usr/lib" "$PWD/root/lib" -maxdepth 2 -name '*.so.*' -exec ln -s -t lib {} +
