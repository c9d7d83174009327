#!/bin/sh
# Makes .env for docker-compose.yml: .env.example, with a random password where one is empty.
# A repeat keeps what .env has, and fills in what is still empty.
set -eu
cd "$(dirname "$0")/../.."
umask 077

from=.env
[ -e .env ] || from=.env.example

trap 'rm -f .env.new' EXIT
while IFS= read -r line || [ -n "$line" ]; do
  case $line in
    POSTGRES_*PASSWORD=) line=$line$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n') ;;
  esac
  printf '%s\n' "$line"
done < "$from" > .env.new
mv .env.new .env
echo ".env has a password for each role, and only you can read it. Now: docker compose --profile demo up --build"
