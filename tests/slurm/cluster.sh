# A Slurm cluster of virtual nodes n1, n2, ... on this machine, for the shell that sources this: tests/slurm/run, which has
# mount, network, host name and process namespaces of its own by then, so that nothing here touches the machine's own
# /etc, /run or network, and all of it ends with the first process of the namespace.
#
# Each node is a slurmd in a network of its own, with its own host name and /dev/shm, on one bridge. $scratch holds all files.

cluster_nodes=2

start_munge() {
  local folder
  for folder in /run /etc/munge /var/lib/munge /var/log/munge; do
    mount -t tmpfs -o mode=0755 tmpfs "$folder"
  done
  mkdir -p /run/munge /run/netns
  head -c 1024 /dev/urandom > /etc/munge/munge.key
  chown -R munge:munge /run/munge /etc/munge /var/lib/munge /var/log/munge
  chmod 0700 /etc/munge /var/lib/munge /var/log/munge
  chmod 0400 /etc/munge/munge.key
  runuser -u munge -- /usr/sbin/munged --num-threads 2
}

write_configuration() {
  local n
  {
    echo "127.0.0.1 localhost"
    echo "10.77.0.1 ctl"
    for ((n = 1; n <= cluster_nodes; ++n)); do echo "10.77.0.$((10 + n)) n$n"; done
  } > "$scratch/hosts"
  mount --bind "$scratch/hosts" /etc/hosts
  cat > "$scratch/slurm.conf" << END
ClusterName=test
SlurmctldHost=ctl(10.77.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
SlurmctldPidFile=$scratch/slurmctld.pid
SlurmctldLogFile=$scratch/log/slurmctld.log
StateSaveLocation=$scratch/state
SlurmdPidFile=$scratch/slurmd.%n.pid
SlurmdLogFile=$scratch/log/slurmd.%n.log
SlurmdSpoolDir=$scratch/spool.%n
TmpFS=$scratch/tmp.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=10
InactiveLimit=0
KillWait=2
OverTimeLimit=0
MinJobAge=3600
UnkillableStepTimeout=10
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0
MessageTimeout=5
$(for ((n = 1; n <= cluster_nodes; ++n)); do
    echo "NodeName=n$n NodeHostname=n$n NodeAddr=10.77.0.$((10 + n)) Port=6818 Sockets=1 CoresPerSocket=4 ThreadsPerCore=1 RealMemory=16000 Gres=gpu:2 State=UNKNOWN"
  done)
PartitionName=low Nodes=n[1-$cluster_nodes] Default=YES PriorityTier=1 MaxTime=INFINITE State=UP
PartitionName=high Nodes=n[1-$cluster_nodes] PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
END
  # Slurm takes any device whose name ends in its number for a GPU.
  for n in 0 1; do mknod "$scratch/nvidia$n" c 1 3; done
  echo "NodeName=n[1-$cluster_nodes] Name=gpu File=$scratch/nvidia[0-1]" > "$scratch/gres.conf"
  export SLURM_CONF=$scratch/slurm.conf
}

# start_node NAME: as after a boot, with nothing left of what ran there.
start_node() {
  rm -rf "$scratch/spool.$1" "$scratch/tmp.$1"
  mkdir -p "$scratch/spool.$1" "$scratch/tmp.$1"
  nsenter "--net=/run/netns/$1" unshare --mount --uts --propagation private bash -c '
    hostname "$1"
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm
    exec env TMPDIR="$2/tmp.$1" slurmd -N "$1"' bash "$1" "$scratch"
}

# kill_node NAME: a crash. Its slurmd and every process of its jobs are gone.
kill_node() {
  ip netns pids "$1" | xargs -r kill -KILL
}

start_cluster() {
  local n
  mkdir -p "$scratch/log" "$scratch/state"
  ip link set lo up
  start_munge
  write_configuration
  ip link add cluster type bridge
  ip addr add 10.77.0.1/24 dev cluster
  ip link set cluster up
  for ((n = 1; n <= cluster_nodes; ++n)); do
    ip netns add "n$n"
    ip link add "to-n$n" type veth peer name eth0 netns "n$n"
    ip link set "to-n$n" master cluster up
    ip -n "n$n" addr add "10.77.0.$((10 + n))/24" dev eth0
    ip -n "n$n" link set eth0 up
    ip -n "n$n" link set lo up
  done
  hostname ctl
  slurmctld -i
  for ((n = 1; n <= cluster_nodes; ++n)); do start_node "n$n"; done
  for ((n = 0; n < 100; ++n)); do
    [[ $(sinfo -h -p low -t idle -o %D 2> /dev/null) == "$cluster_nodes" ]] && return 0
    sleep 0.1
  done
  echo "the nodes are not idle after 10 s" >&2
  sinfo >&2
  return 1
}
