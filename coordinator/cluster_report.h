#ifndef CONCLAVE_COORDINATOR_CLUSTER_REPORT_H_
#define CONCLAVE_COORDINATOR_CLUSTER_REPORT_H_

#include "coordinator/cluster.h"
#include "coordinator/scheduler.h"
#include "proto/conclave/v1/cluster.pb.h"

namespace conclave::coordinator {

// State, ranks and counters, as ClusterService.GetCluster answers. What ranks measure themselves is
// as fresh as their last heartbeat.
v1::GetClusterResponse ReportCluster(const Cluster& cluster, const Scheduler& scheduler);

}  // namespace conclave::coordinator

#endif  // CONCLAVE_COORDINATOR_CLUSTER_REPORT_H_
