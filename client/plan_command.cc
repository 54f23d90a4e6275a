#include "client/plan_command.h"

#include <fmt/format.h>

#include <memory>
#include <string>

#include "client/exit_code.h"
#include "client/plan_report.h"
#include "client/shape_flags.h"
#include "client/shape_table.h"

namespace conclave::client {
namespace {

constexpr char kName[] = "plan";

struct Flags {
  std::string model;
  ShapeFlags shape;
  std::string device = "cpu";
  bool json = false;
};

int Run(const Flags& flags) {
  const auto shape = Resolve(flags.shape);
  if (!shape.ok()) return FailUsage(kName, std::string(shape.status().message()));
  const auto config = model::LoadConfig(flags.model);
  if (!config.ok()) return Fail(kName, config.status());
  if (const auto status = model::CheckShape(*config, *shape); !status.ok()) {
    return FailUsage(kName, std::string(status.message()));
  }
  const bool cuda = flags.device == "cuda";
  const auto plan = MakePlan(flags.model, *config, *shape, cuda ? 2 : 4);
  if (!plan.ok()) return Fail(kName, plan.status());
  if (flags.json) {
    Json json = PlanJson(*plan);
    if (cuda) json["fastest"] = FastestJson(*config, shape->world());
    fmt::print("{}\n", Dump(json));
  } else {
    fmt::print("{}{}", PlanText(*plan), cuda ? FastestText(*config, shape->world()) : "");
  }
  return kExitOk;
}

}  // namespace

void AddPlanCommand(base::FlagSet& app, std::function<int()>* run) {
  auto flags = std::make_shared<Flags>();
  base::FlagSet& command =
      app.AddCommand(kName, "Show what each worker would hold, reading only headers");
  command.Add("--model", &flags->model, "Folder of the checkpoint").Type("DIR").Required();
  AddShapeFlags(command, &flags->shape);
  command.Add("--device", &flags->device, "KV values take 4 bytes on cpu, 2 on cuda")
      .OneOf({"cpu", "cuda"})
      .ShowDefault();
  command.AddSwitch("--json", &flags->json, "Print one JSON object (docs/cli.md lists its fields)");
  command.SetFooter(
      "Example:\n"
      "  conclave plan --model demo/tiny_gpt_oss --workers 4");
  command.OnParsed([flags, run] { *run = [flags] { return Run(*flags); }; });
}

}  // namespace conclave::client
