#include "coordinator/handover.h"

#include <fmt/format.h>

#include "base/logging.h"

namespace conclave::coordinator {

void Handover::Advance(bool rebalancing) {
  const absl::Time now = clock_.Now();
  if (suspended_) AwaitNextEpoch(now);
  if (!cluster_.leaving()) {
    if (held_ && scheduler_.in_epoch()) scheduler_.Hold(false);
    held_ = false;
    since_ = absl::InfiniteFuture();
    return;
  }
  if (!under_way()) since_ = now;
  if (!scheduler_.in_epoch()) return Release();  // nothing is computed
  if (rebalancing || cluster_.state() != v1::READY) return;
  if (cluster_.has_substitute()) {
    if (!held_) scheduler_.Hold(true);
    held_ = true;
    if (scheduler_.plans_in_flight() > 0) return;
    scheduler_.Suspend();
    suspended_ = true;
    last_loading_ = now;
    return Release();
  }
  if (held_) scheduler_.Hold(false);
  held_ = false;
  if (scheduler_.idle() || now - since_ >= limit_) Release();
}

void Handover::Release() {
  held_ = false;
  since_ = absl::InfiniteFuture();
  cluster_.LetGo();
}

void Handover::AwaitNextEpoch(absl::Time now) {
  suspended_ = !scheduler_.in_epoch();
  if (cluster_.state() == v1::LOADING) last_loading_ = now;
  if (!suspended_ || now - last_loading_ < limit_) return;
  suspended_ = false;
  scheduler_.FailAll(absl::UnavailableError(
      fmt::format("a worker left, and no complete group was formed within {}: {}; what was sent "
                  "until now is a prefix of the output",
                  absl::FormatDuration(limit_), cluster_.Problem())));
}

}  // namespace conclave::coordinator
