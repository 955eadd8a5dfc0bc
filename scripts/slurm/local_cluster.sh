#!/usr/bin/env bash
# A SLURM cluster of two nodes on this machine, for tests: real daemons on loopback, no systemd, no cgroups.
#
#   local_cluster.sh install   Debian's packages, where they are missing (root)
#   local_cluster.sh start     and wait until both nodes are idle; starting twice is one start (root)
#   local_cluster.sh stop      daemons and jobs; logs stay
#   local_cluster.sh conf      prints the path of slurm.conf: export SLURM_CONF="$(local_cluster.sh conf)"
#
# Everything lies in $LHTRAIN_SLURM, /tmp/lhtrain-slurm unless set. Nodes node0 and node1, two CPUs each; partition
# low (default) can be preempted by partition high.
set -euo pipefail

base=${LHTRAIN_SLURM:-/tmp/lhtrain-slurm}
export SLURM_CONF=$base/etc/slurm.conf
host=$(hostname -s)

install() {
  local missing=false
  for program in slurmctld slurmd munged sbatch; do
    command -v "$program" >/dev/null || missing=true
  done
  $missing || return 0
  apt-get update -q
  # Installing must not start the distribution's own daemons: they would take the ports.
  DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -q -y --no-install-recommends \
    slurmctld slurmd slurm-client munge
}

write_configuration() {
  mkdir -p "$base"/{etc,run,log,state,spool/node0,spool/node1}
  chmod 755 "$base" "$base"/*
  # cred_expire: a requeued job waits for that long, 120 s by default. preempt_send_user_signal: a job that
  # asked for a signal before its end (--signal) gets that one when it is preempted, as on many clusters.
  cat >"$SLURM_CONF" <<END
ClusterName=lhtrain
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket=$base/run/munge.socket,cred_expire=5
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$base/state
SlurmdSpoolDir=$base/spool/%n
SlurmctldPidFile=$base/run/slurmctld.pid
SlurmdPidFile=$base/run/slurmd.%n.pid
SlurmctldLogFile=$base/log/slurmctld.log
SlurmdLogFile=$base/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
ReturnToService=2
InactiveLimit=0
KillWait=8
MinJobAge=300
SlurmctldTimeout=30
SlurmdTimeout=60
Waittime=0
NodeName=node0 NodeAddr=127.0.0.1 Port=17001 CPUs=2 RealMemory=1000 State=UNKNOWN
NodeName=node1 NodeAddr=127.0.0.1 Port=17002 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=low  Nodes=node0,node1 Default=YES MaxTime=60 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=5
PartitionName=high Nodes=node0,node1 Default=NO  MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
END
  printf '127.0.0.1 localhost %s node0 node1\n' "$host" >"$base/etc/hosts"
}

alive() { [ -s "$base/run/$1.pid" ] && kill -0 "$(<"$base/run/$1.pid")" 2>/dev/null; }

# Where no controller runs sinfo would try for a minute.
idle() { alive slurmctld && [ "$(sinfo -h -N -p low -t idle 2>/dev/null | wc -l)" = 2 ]; }

start() {
  if idle; then
    return
  fi
  stop
  write_configuration
  rm -f "$base/etc/munge.key"
  mungekey -c -k "$base/etc/munge.key" -b 1024
  chmod 600 "$base/etc/munge.key"
  munged --force --key-file="$base/etc/munge.key" --socket="$base/run/munge.socket" \
    --pid-file="$base/run/munged.pid" --log-file="$base/log/munged.log" --seed-file="$base/run/munged.seed"
  slurmctld -c -f "$SLURM_CONF"
  for node in node0 node1; do # a hostname each, by which torchrun's rendezvous knows who is who
    unshare -mu --propagation private bash -c \
      'hostname "$1"; mount --bind "$2/etc/hosts" /etc/hosts; exec slurmd -N "$1" -f "$2/etc/slurm.conf"' \
      start "$node" "$base"
  done
  for _ in $(seq 300); do
    if idle; then
      return
    fi
    sleep 0.1
  done
  echo "local_cluster.sh: no two idle nodes after 30 s; logs: $base/log" >&2
  sinfo -N -l >&2 || true
  exit 1
}

end_process() { # by its pid file, which a process that is gone may have left
  [ -s "$1" ] || return 0
  local pid
  pid=$(<"$1")
  kill "$pid" 2>/dev/null || true
  for _ in $(seq 100); do
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  kill -9 "$pid" 2>/dev/null || true
  rm -f "$1"
}

stop() {
  [ -d "$base/run" ] || return 0
  if alive slurmctld; then
    timeout 5 scancel --user="$(id -un)" 2>/dev/null || true
  fi
  # Nodes first: one that cannot reach the controller takes two minutes to leave.
  for name in slurmd.node0 slurmd.node1 slurmctld munged; do
    end_process "$base/run/$name.pid"
  done
}

case ${1:-} in
install) install ;;
start) start ;;
stop) stop ;;
conf) echo "$SLURM_CONF" ;;
*)
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
  exit 2
  ;;
esac
