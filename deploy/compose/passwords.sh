#!/bin/sh
# Makes .env for docker-compose.yml: .env.example, with a random password where one is empty.
# A repeat keeps what .env has, fills in what is still empty, and adds the passwords that a later release needs.
set -eu
cd "$(dirname "$0")/../.."
umask 077

from=.env
[ -e .env ] || from=.env.example

trap 'rm -f .env.new' EXIT
{
  cat "$from"
  # A file that somebody wrote may lack its last line end.
  [ -z "$(tail -c 1 "$from")" ] || echo
  while IFS= read -r line; do
    case $line in
      POSTGRES_*PASSWORD=) grep -q "^$line" "$from" || printf '%s\n' "$line" ;;
    esac
  done < .env.example
} | while IFS= read -r line; do
  case $line in
    POSTGRES_*PASSWORD=) line=$line$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n') ;;
  esac
  printf '%s\n' "$line"
done > .env.new
mv .env.new .env
echo ".env has a password for each role, and only you can read it. Now: docker compose --profile demo up --build"
