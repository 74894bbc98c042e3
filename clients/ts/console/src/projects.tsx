// Projects, with the tasks of coding agents and Linear's issues.
import { useConversations, useProject, useProjects, useTasks } from "@holdfast/react";
import { useAsk } from "./ask.ts";
import { Talks } from "./home.tsx";
import { object, to } from "./route.ts";
import { Card, Empty, Failure, Loading, Mark, type State } from "./ui.tsx";
import { clock, count, who, words } from "./words.ts";

export function Projects({ id }: { id: string | undefined }) {
  const list = useProjects({}, { limit: 200 });
  const chosen = id ?? list.value?.[0]?.projectId;
  if (list.status === "failed") return <Failure error={list.error} again={list.retry} />;
  if (list.status === "loading") return <Loading lines={5} />;
  return (
    <>
      <div className="head">
        <div className="grow">
          <h1>{list.value.length ? count(list.value.length, "project") : "Projects"}</h1>
          <p>What conversations are about: tasks of coding agents, and issues that follow Linear.</p>
        </div>
      </div>
      {list.value.length === 0 && !id ? (
        <div className="card">
          <Empty
            title="No project yet"
            code={`curl $HOLDFAST_API/holdfast.project.v1.ProjectService/PutProject -H "Authorization: Bearer $HOLDFAST_TOKEN" -H 'Content-Type: application/json' -d '{"projectId": "p1", "project": {"title": "Web"}}'`}
          >
            Make one, and conversations, tasks and issues gather here.
          </Empty>
        </div>
      ) : (
        <div className="split">
          <nav className="card kinds" aria-label="Projects">
            {list.value.map((p) => (
              <a
                key={p.projectId}
                data-row
                href={to("projects", p.projectId)}
                aria-current={p.projectId === chosen ? "page" : undefined}
              >
                {p.title || p.projectId}
              </a>
            ))}
          </nav>
          {chosen && <Project key={chosen} id={chosen} />}
        </div>
      )}
    </>
  );
}

const marks: { [status: string]: State } = {
  running: "live",
  completed: "",
  failed: "ring",
  cancelled: "off",
  queued: "wait",
  pending: "wait",
  needs_input: "half",
};

function Project({ id }: { id: string }) {
  const project = useProject(id);
  const tasks = useTasks({ projectId: id }, { limit: 100 });
  const issues = useAsk(
    `issues ${id}`,
    (hf, signal) =>
      hf.rpc.project.getProjectContext({ projectId: id, issueLimit: 50 }, { signal }).then((a) => a.context?.issues ?? []),
    { since: project.value?.version, every: 15_000 },
  );
  const talks = useConversations({ projectId: id }, { limit: 20 });
  const webhooks = useAsk(
    "webhooks",
    (hf, signal) => hf.rpc.inspect.listObjects({ kind: "linear_delivery", pageSize: 5 }, { signal }),
    { every: 15_000 },
  );
  const p = project.value;
  if (project.status === "failed") return <Failure error={project.error} again={project.retry} />;
  if (project.status === "loading") return <Loading lines={5} />;
  if (!p)
    return (
      <div className="card">
        <Empty title={`There is no project ${id}`} />
      </div>
    );
  return (
    <div>
      <Card
        title={p.title || id}
        meta={
          <a className="link" href={object("project", id)}>
            {count(p.version, "version")}
          </a>
        }
      >
        <dl className="kv small pad">
          <dt>Id</dt>
          <dd className="mono">{id}</dd>
          <dt>Owner</dt>
          <dd>{who(p.owner, "the tenant")}</dd>
          {p.description && (
            <>
              <dt>About</dt>
              <dd>{p.description}</dd>
            </>
          )}
          {p.repository && (
            <>
              <dt>Repository</dt>
              <dd>{p.repository.name || p.repository.url}</dd>
            </>
          )}
          <dt>Issues from</dt>
          <dd>
            {p.issueSources.length
              ? p.issueSources.map((s) => `${s.provider} ${s.type} ${s.id}`).join(", ")
              : "nowhere; it has no issue source"}
          </dd>
          <dt>Changed</dt>
          <dd className="n">{clock(p.updateTime)}</dd>
        </dl>
      </Card>
      <Card title="Tasks" meta={tasks.value?.length}>
        {tasks.status === "failed" && <Failure error={tasks.error} />}
        {tasks.value?.length === 0 && <Empty title="No task yet">A run of a coding agent appears here while it works.</Empty>}
        <table className="t">
          <tbody>
            {tasks.value?.map((t) => (
              <tr key={t.taskId}>
                <td className="cut">
                  <Mark as={marks[t.status] ?? "off"} />
                  <a className="b" data-row href={object("task", t.taskId)}>
                    {t.title || t.taskId}
                  </a>
                  <small className="cut">{t.statusReason || t.summary || t.provider}</small>
                </td>
                <td className="cut">
                  {words(t.status)}
                  <small className="cut">{t.needsInput || t.rawStatus}</small>
                </td>
                <td className="r n d2">
                  {clock(t.updateTime)}
                  <small>{t.pullRequests.length ? count(t.pullRequests.length, "pull request") : ""}</small>
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </Card>
      <Card title="Issues" meta={issues.value?.length}>
        {issues.error && <Failure error={issues.error} />}
        {issues.value?.length === 0 && (
          <Empty title="No issue">
            {p.issueSources.length ? "None has come from Linear yet." : "Name a team or a project of Linear as its issue source."}
          </Empty>
        )}
        <table className="t">
          <tbody>
            {issues.value?.map((i) => (
              <tr key={i.issueId}>
                <td className="cut">
                  <a className="b" data-row href={object("linear_issue", i.issueId)}>
                    {i.identifier} {i.title}
                  </a>
                </td>
                <td className="r n d2">{clock(i.updateTime)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </Card>
      {talks.value && talks.value.length > 0 && (
        <Card title="Conversations about it" meta={talks.value.length}>
          <Talks of={talks.value} />
        </Card>
      )}
      {webhooks.value && webhooks.value.objects.length > 0 && (
        <Card
          title="Webhooks of Linear"
          meta={
            <a className="link" href={to("objects", "linear_delivery")}>
              All
            </a>
          }
        >
          <table className="t">
            <tbody>
              {webhooks.value.objects.map((o) => (
                <tr key={o.objectId}>
                  <td className="cut mono">
                    <a data-row href={object("linear_delivery", o.objectId)}>
                      {o.objectId}
                    </a>
                  </td>
                  <td className="r n d2">{clock(o.updateTime)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </Card>
      )}
    </div>
  );
}
