#!/bin/sh
# Makes the files of secrets that docker-compose.yml reads, in the folder `secrets` beside it. What is there is kept.
#
#   deploy/compose/secrets.sh
#
# Passwords that an older .env has are taken over; remove them there afterwards. Containers run as several users, so each
# file is readable for all; the folder is not, so nobody else on this machine reaches them.
set -eu
cd -- "$(dirname -- "$0")/../.."
umask 077
mkdir -p secrets
chmod 700 secrets

# The value of a variable in .env, without the quotes around it; nothing, if it is not there or empty.
old() {
    if [ -f .env ]; then
        sed -n "s/^$1=//p" .env | tail -n 1 | tr -d '\r' | sed -e 's/^"\(.*\)"$/\1/' -e "s/^'\(.*\)'\$/\1/"
    fi
}

# 48 letters and digits: they become parts of URLs.
random() {
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n'
}

# Write a file, if it is not there: its name, its text.
put() {
    if [ ! -e "secrets/$1" ]; then
        printf '%s\n' "$2" >"secrets/$1.new"
        chmod 444 "secrets/$1.new"
        mv "secrets/$1.new" "secrets/$1"
        echo "made secrets/$1"
    fi
}

# Write the file of a password: its name, the variable that an older .env has for it.
password() {
    found=$(old "$2")
    put "$1" "${found:-$(random)}"
}

text() {
    cat "secrets/$1"
}

password postgres-password POSTGRES_PASSWORD # of PostgreSQL's superuser, for the service `migrate`
password postgres-app-password POSTGRES_APP_PASSWORD # of the user that stores events
password redis-password REDIS_PASSWORD
password operator-password OPERATOR_PASSWORD # of the live page, with any user
password grafana-password GRAFANA_ADMIN_PASSWORD # of the user admin
found=$(old FLOWER_BASIC_AUTH)
put flower-basic-auth "${found:-flower:$(random)}" # user:password

put redis.conf "requirepass $(text redis-password)"
put migrate-database-url "postgresql://sluice:$(text postgres-password)@postgres:5432/sluice"
put database-url "postgresql://sluice_app:$(text postgres-app-password)@postgres:5432/sluice"
put redis-url "redis://:$(text redis-password)@redis-control:6379/0"
found=$(old EVENT_LOG_URL)
case "$(old COMPOSE_PROFILES)" in
*redis-log*) put event-log-url "${found:-redis://:$(text redis-password)@redis-log:6379/0}" ;;
*) put event-log-url "${found:-kafka://kafka:9092}" ;;
esac

if [ ! -e secrets/alertmanager.yml ]; then
    cp deploy/compose/alertmanager.yml secrets/alertmanager.yml
    chmod 444 secrets/alertmanager.yml
    echo "made secrets/alertmanager.yml: fill in where alerts are sent to"
fi
