// Machine files: what is measured comes back, and every mistake is found where it stands.
#include <doctest/doctest.h>

#include <string>

#include "partition/machine.hpp"
#include "partition/model.hpp"
#include "partition/run_file.hpp"
#include "partition/yaml_values.hpp"

using namespace stagecoach;

namespace {

std::string error_of(const std::string& text) {
  try {
    parse_machine(text, "m.yaml");
  } catch (const PlanError& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("a written machine is read again") {
  Machine machine;
  MachineDevice device;
  device.name = "it's a 'cpu'";
  device.count = 3;
  device.dtype = "float16";
  device.kv_dtype = "float32";
  device.memory_bytes = std::int64_t{8} << 30;
  device.speed.product = Curve({{1.0, 125e-12}, {256.0, 3000e-12}});
  device.speed.head = Curve({{1.0, 110e-12}});
  device.speed.attention = Curve({{1.0, 90e-12}, {64.0, 20.5e-12}});
  device.speed.microbatch_s = 25e-6;
  machine.devices.push_back(device);
  MachineDevice rated;
  rated.cuda = true;
  rated.rates = DeviceRates{3e12, 300e12, 4.0, 4.0};
  machine.devices.push_back(rated);
  machine.link = {3e-6, 1e-10};
  const Machine again = parse_machine(machine_text(machine), "m.yaml");
  REQUIRE(again.devices.size() == 2);
  CHECK(again.device_count() == 4);
  CHECK(again.device(2).name == device.name);
  CHECK(again.device(3).cuda);
  CHECK(again.device(99).cuda);
  CHECK(again.devices[0].memory_bytes == device.memory_bytes);
  CHECK(again.devices[0].speed.product.at(256.0) == doctest::Approx(3000e-12));
  CHECK(again.devices[0].speed.microbatch_s == doctest::Approx(25e-6));
  CHECK(again.devices[1].rates->flops_per_s == doctest::Approx(300e12));
  CHECK(again.link.latency_s == doctest::Approx(3e-6));
  CHECK(machine_text(again) == machine_text(machine));
}

TEST_CASE("any text can stand in YAML that is written") {
  for (const char* const text : {"", "it's", "a: b # c", "a\nb", "tab\tand \"quotes\" and \\ and \x7f", "\xc3\xa4"}) {
    const std::string yaml = "model: " + yaml_text(text) + "\n";
    CAPTURE(yaml);
    const RunFile file = parse_run_file(yaml, "r");
    REQUIRE(file.settings.size() == 1);
    CHECK(file.settings[0].value == text);
  }
}

TEST_CASE("mistakes in machine files are found where they stand") {
  const auto device = [](const std::string& line) { return "devices:\n  - name: a\n    " + line + "\n"; };
  CHECK(error_of("") == "m.yaml: is empty; a machine file lists devices");
  CHECK(error_of("link: {latency_us: 1}\n").starts_with("m.yaml:1:1: devices: missing"));
  CHECK(error_of("- a\n").starts_with("m.yaml:1:1: a machine file: a list is not a group"));
  CHECK(error_of("device: 1\n") ==
        "m.yaml:1:1: device: unknown key of a machine file (devices, link); did you mean devices?");
  CHECK(error_of("devices: 3\n").starts_with("m.yaml:1:10: devices: 3 is not a list of devices"));
  CHECK(error_of(device("count: 0")).starts_with("m.yaml:3:12: count: 0 is not a number from 1 to 4096"));
  CHECK(error_of(device("device: gpu")).starts_with("m.yaml:3:13: device: gpu is not one of cpu, cuda"));
  CHECK(error_of(device("memory: 8 GB")).starts_with("m.yaml:3:13: memory: 8 GB is not a size"));
  CHECK(error_of(device("bandwith_gb_s: 8")).find("did you mean bandwidth_gb_s?") != std::string::npos);
  CHECK(error_of(device("bandwidth_gb_s: -8")).starts_with("m.yaml:3:21: bandwidth_gb_s: -8 is not a number from"));
  CHECK(error_of(device("bandwidth_gb_s: 8")).find("go together") != std::string::npos);
  CHECK(error_of("devices:\n  - name: " + std::string(81, 'x')).starts_with("m.yaml:2:11: name: xxx"));
  CHECK(error_of("devices:\n  - name: \"a\\nb\"")
            .starts_with("m.yaml:2:11: name: a\\x0ab is longer than 80 bytes or has"));
  CHECK(error_of(device("count: 2")).starts_with("m.yaml:2:5: devices: a device has either"));
  CHECK(error_of(device("product_ps: [[2, 1], [1, 1]]"))
            .starts_with("m.yaml:3:26: product_ps: has 1 rows after 2; points go by ascending rows"));
  CHECK(error_of(device("product_ps: [1, 2]")).starts_with("m.yaml:3:18: product_ps: must be a point"));
  CHECK(error_of(device("product_ps: [[1, 2]]")).find("go together") != std::string::npos);
}
