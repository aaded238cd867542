#!/usr/bin/env bash
# A real Slurm on this host: two virtual nodes n1 and n2, each with 2 CPUs and 2 fake GPUs.
#   up.sh up DIR      start it; root, on Debian or a child of it; installs slurm-wlm and munge where missing
#   up.sh down DIR    stop it
# All files are under DIR but for munge's key and socket; ports 16817, 17001, 17002.
# Then: export SLURM_CONF=DIR/slurm.conf MASTER_ADDR=127.0.0.1   (the nodes' names mean nothing to a resolver)
set -euo pipefail
DIR=$(realpath -m "$2")
HOST=$(hostname -s)
export SLURM_CONF=$DIR/slurm.conf

down() {
  local name
  for name in slurmd-n1 slurmd-n2 slurmctld munged; do
    if [ -s "$DIR/run/$name.pid" ]; then kill "$(cat "$DIR/run/$name.pid")" 2>/dev/null || true; fi
  done
}

install() {
  command -v slurmctld >/dev/null && command -v munged >/dev/null && return
  export DEBIAN_FRONTEND=noninteractive
  timeout 60 apt-get update -qq >/dev/null || { echo "up.sh: apt-get update failed" >&2; return 1; }
  timeout 120 apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null
}

configure() {
  mkdir -p "$DIR"/{state,spool-n1,spool-n2,log,run}
  touch "$DIR/fakegpu0" "$DIR/fakegpu1"
  cat > "$SLURM_CONF" <<CONF
ClusterName=amrs
SlurmctldHost=$HOST(127.0.0.1)
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
SlurmctldPort=16817
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool-%n
SlurmctldPidFile=$DIR/run/slurmctld.pid
SlurmdPidFile=$DIR/run/slurmd-%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
KillWait=10
GresTypes=gpu
NodeName=n1 NodeHostname=$HOST NodeAddr=127.0.0.1 Port=17001 CPUs=2 RealMemory=4000 Gres=gpu:2 State=UNKNOWN
NodeName=n2 NodeHostname=$HOST NodeAddr=127.0.0.1 Port=17002 CPUs=2 RealMemory=4000 Gres=gpu:2 State=UNKNOWN
PartitionName=debug Nodes=n1,n2 Default=YES MaxTime=00:30:00 State=UP OverSubscribe=YES
CONF
  echo "NodeName=n1,n2 Name=gpu File=$DIR/fakegpu[0-1]" > "$DIR/gres.conf"
}

munge_up() {
  mkdir -p /run/munge
  chown munge: /run/munge
  chmod 755 /run/munge
  if [ ! -s /etc/munge/munge.key ]; then
    dd if=/dev/urandom of=/etc/munge/munge.key bs=1024 count=1 status=none
    chown munge: /etc/munge/munge.key
    chmod 400 /etc/munge/munge.key
  fi
  if ! munge -n 2>/dev/null | unmunge >/dev/null 2>&1; then  # another's munged does as well, and stays
    runuser -u munge -- /usr/sbin/munged --force
    cp /run/munge/munged.pid "$DIR/run/munged.pid"
  fi
  munge -n | unmunge >/dev/null
}

up() {
  [ "$(id -u)" = 0 ] || { echo "up.sh: Slurm's daemons need root" >&2; exit 1; }
  install
  configure
  munge_up
  slurmctld -c -f "$SLURM_CONF"
  slurmd -N n1 -f "$SLURM_CONF"
  slurmd -N n2 -f "$SLURM_CONF"
  for _ in $(seq 40); do
    if [ "$(sinfo -h -t idle -o %D 2>/dev/null)" = 2 ]; then return; fi
    sleep 0.5
  done
  echo "up.sh: the two nodes did not come up" >&2
  tail -n 20 "$DIR"/log/*.log >&2
  down
  exit 1
}

case $1 in
  up) up ;;
  down) down ;;
  *) echo "up.sh: up DIR or down DIR" >&2; exit 2 ;;
esac
