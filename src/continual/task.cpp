#include "espalier/continual/task.h"

#include <algorithm>

#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/data/task_sequence.h"

namespace espalier::continual {
namespace {

using train::Json;

Json data_json(data::DataOptions options) {
  Json out = Json::object();
  for (const Option& option : describe(options)) {
    if (option.name != "root") out[option.name] = Json::parse(option.value_text());
  }
  return out;
}

data::DataOptions data_from(const Json& json) {
  data::DataOptions options;
  for (const Option& option : describe(options)) {
    if (!json.contains(option.name)) continue;
    const Json& value = json.at(option.name);
    if (auto* text = std::get_if<std::string*>(&option.value)) **text = value.get<std::string>();
    if (auto* number = std::get_if<double*>(&option.value)) **number = train::number_from_json(value);
    if (auto* whole = std::get_if<std::int64_t*>(&option.value)) **whole = value.get<std::int64_t>();
    option.validate("[data]." + option.name + " = ");
  }
  return options;
}

nn::InputShape shape_of(const data::Dataset& set) {
  ESPALIER_CHECK(
      !set.train.source && !set.test.source, ErrorKind::usage,
      "continual: \"{}\" has images of many sizes, which are read when they are looked at; a sequence of tasks "
      "takes data sets in memory, of images of one size",
      set.name);
  const auto shape = set.train.shape();
  return {shape[0], shape[1], shape[2]};
}

}  // namespace

std::string TaskSource::text() const {
  if (sequence == "permuted") {
    return number == 1 ? data.name + ", pixels in their own order"
                       : fmt::format("{}, permutation {}", data.name, number);
  }
  if (sequence == "rotated") return fmt::format("{}, turned by {} degrees", data.name, degrees);
  if (sequence == "split") {
    return fmt::format("{}, classes {} to {}", data.name, first_class, first_class + classes - 1);
  }
  return data.name;
}

Json TaskSource::to_json() const {
  return {{"sequence", sequence},       {"number", number},   {"seed", seed},           {"degrees", degrees},
          {"first_class", first_class}, {"classes", classes}, {"data", data_json(data)}};
}

TaskSource TaskSource::from_json(const Json& json) {
  TaskSource s;
  s.sequence = json.at("sequence").get<std::string>();
  s.number = json.at("number").get<std::int64_t>();
  s.seed = json.at("seed").get<std::uint64_t>();
  s.degrees = train::number_from_json(json.at("degrees"));
  s.first_class = json.at("first_class").get<std::int64_t>();
  s.classes = json.at("classes").get<std::int64_t>();
  s.data = data_from(json.at("data"));
  const std::vector<std::string> known = {"permuted", "rotated", "split", "datasets"};
  ESPALIER_CHECK(std::find(known.begin(), known.end(), s.sequence) != known.end(), ErrorKind::data,
                 "a task of an unknown sequence \"{}\"", s.sequence);
  return s;
}

TaskSource task_source(const train::RunConfig& config, std::int64_t number, std::int64_t base_classes) {
  const train::ContinualOptions& c = config.continual;
  TaskSource s;
  s.sequence = c.sequence;
  s.number = number;
  s.seed = static_cast<std::uint64_t>(config.run.seed);
  s.data = config.data;
  if (c.sequence == "rotated") s.degrees = c.rotation * static_cast<double>(number - 1);
  if (c.sequence == "split") {
    s.first_class = (number - 1) * c.classes_per_task;
    s.classes = c.classes_per_task;
    const std::int64_t tasks = base_classes / c.classes_per_task;
    ESPALIER_CHECK(number >= 1 && number <= tasks, ErrorKind::usage,
                   "[continual]: there is no task {}: {} classes of \"{}\" make {} tasks of {}", number, base_classes,
                   config.data.name, tasks, c.classes_per_task);
  }
  if (c.sequence == "datasets") {
    ESPALIER_CHECK(number >= 1 && number <= static_cast<std::int64_t>(c.datasets.size()), ErrorKind::usage,
                   "[continual].datasets: there is no data set {}; {}", number,
                   c.datasets.empty() ? "none is named" : fmt::format("they are {}", fmt::join(c.datasets, ", ")));
    s.data.name = c.datasets[static_cast<std::size_t>(number - 1)];
  }
  return s;
}

TaskSource task_of_data(const train::RunConfig& config, const std::string& name) {
  TaskSource s;
  s.sequence = "datasets";
  s.seed = static_cast<std::uint64_t>(config.run.seed);
  s.data = config.data;
  s.data.name = name;
  return s;
}

const data::Dataset& TaskData::base(const TaskSource& source) {
  data::DataOptions options = source.data;
  if (!root_.empty()) options.root = root_;
  // Everything that decides the bytes; the seed matters to drawn images.
  const std::string key = train::to_json_line(data_json(options)) + options.root + std::to_string(source.seed);
  auto at = sets_.find(key);
  if (at == sets_.end()) at = sets_.emplace(key, data::load_dataset(options, source.seed)).first;
  return at->second;
}

std::unique_ptr<train::RunData> TaskData::of(const TaskSource& source, const train::RunConfig& config,
                                             const nn::InputShape& input) {
  data::Dataset set = base(source);
  if (source.sequence == "split") set = data::of_classes(set, source.first_class, source.classes);
  if (source.sequence == "rotated") set = data::rotated(std::move(set), source.degrees);
  set = data::fitted(std::move(set), input.channels, input.height, input.width);
  if (source.sequence == "permuted") set = data::permuted(std::move(set), source.seed, source.number);
  train::RunConfig own = config;
  own.data = source.data;
  own.data.augment = config.data.augment;
  own.run.seed = static_cast<std::int64_t>(source.seed);
  return std::make_unique<train::RunData>(own, std::move(set));
}

bool own_heads(const train::ContinualOptions& options) {
  if (options.head != "auto") return options.head == "own";
  return options.sequence == "split" || options.sequence == "datasets";
}

Sequence plan_sequence(const train::RunConfig& config, TaskData& data) {
  const train::ContinualOptions& c = config.continual;
  ESPALIER_CHECK(c.sequence != "none", ErrorKind::usage,
                 "[continual].sequence is \"none\": there is no sequence of tasks in this configuration; set it to "
                 "permuted, rotated, split or datasets");
  Sequence plan;
  plan.own_heads = own_heads(c);
  plan.tasks = c.tasks;
  std::int64_t base_classes = 0;
  if (c.sequence == "split") {
    TaskSource whole;
    whole.data = config.data;
    whole.seed = static_cast<std::uint64_t>(config.run.seed);
    base_classes = data.base(whole).num_classes();
    if (plan.tasks == 0) plan.tasks = base_classes / c.classes_per_task;
  }
  if (c.sequence == "datasets" && plan.tasks == 0) plan.tasks = static_cast<std::int64_t>(c.datasets.size());
  std::int64_t classes = 0;
  for (std::int64_t t = 1; t <= plan.tasks; ++t) {
    plan.sources.push_back(task_source(config, t, base_classes));
    const data::Dataset& set = data.base(plan.sources.back());
    const nn::InputShape shape = shape_of(set);
    plan.input = {std::max(plan.input.channels, shape.channels), std::max(plan.input.height, shape.height),
                  std::max(plan.input.width, shape.width)};
    const std::int64_t of_task = c.sequence == "split" ? c.classes_per_task : set.num_classes();
    ESPALIER_CHECK(plan.own_heads || t == 1 || of_task == classes, ErrorKind::usage,
                   "[continual].head = \"shared\": task {} has {} classes and task 1 has {}; set it to own", t, of_task,
                   classes);
    if (t == 1) classes = of_task;
  }
  for (const TaskSource& s : plan.sources) {
    if (shape_of(data.base(s)) == plan.input) continue;
    log_info(fmt::format("{}: images of {} stand in the middle of {}", s.text(), shape_of(data.base(s)).text(),
                         plan.input.text()));
  }
  return plan;
}

}  // namespace espalier::continual
