// What objects wait for, and what is not tried any more.
import { useHoldfast } from "@holdfast/react";
import { useState } from "react";
import { useAsk } from "./ask.ts";
import { object } from "./route.ts";
import { Act, Card, Empty, Failure, In, Loading, Mark, Seg } from "./ui.tsx";
import { clock, count, words } from "./words.ts";

export function Timers() {
  const hf = useHoldfast();
  const [which, setWhich] = useState<"all" | "parked">("all");
  const asked = useAsk(
    `timers ${which}`,
    (hf, signal) => hf.rpc.inspect.listTimers({ pageSize: 200, parked: which === "parked" }, { signal }),
    { every: 5000 },
  );
  const timers = asked.value?.timers ?? [];
  const parked = timers.filter((t) => t.parked).length;
  return (
    <>
      <div className="head">
        <div className="grow">
          <h1>
            {asked.value
              ? `${count(timers.length, "timer")}${asked.value.nextPageToken ? " or more" : ""}, ${parked || "none"} parked`
              : "Timers"}
          </h1>
          <p>A timer wakes its object and is gone in the same change. After ten failures it is parked until you try it again.</p>
        </div>
        <Seg
          label="Which"
          of={[
            ["all", "All"],
            ["parked", "Parked"],
          ]}
          value={which}
          set={setWhich}
        />
      </div>
      {asked.error && <Failure error={asked.error} again={asked.again} />}
      <Card title="Timers" meta="by kind, object and name">
        {asked.loading && !asked.value && <Loading />}
        {asked.value && timers.length === 0 && (
          <Empty title={which === "parked" ? "No timer is parked" : "Nothing waits"}>Timers appear when objects set them.</Empty>
        )}
        <table className="t">
          <tbody>
            {timers.map((t) => (
              <tr key={`${t.kind}/${t.objectId}/${t.name}`}>
                <td className="cut">
                  <Mark as={t.parked ? "sq" : t.attempts ? "half" : "off"} />
                  <a data-row href={object(t.kind, t.objectId)}>
                    <b>{words(t.name)}</b> of {t.kind}/{t.objectId}
                  </a>
                  <small className="cut">
                    {t.attempts
                      ? `${t.parked ? "Parked after" : "Failed"} ${count(t.attempts, "try", "tries")}: ${t.lastError}`
                      : "Never failed"}
                  </small>
                </td>
                <td className="n d2 r">
                  {t.parked ? (
                    <Act
                      label="Try again"
                      run={async () => (await hf.inspect(t.kind, t.objectId).retryTimer(t.name), asked.again())}
                    />
                  ) : (
                    <In time={t.nextTime ?? t.dueTime} />
                  )}
                  <small>{clock(t.nextTime ?? t.dueTime)}</small>
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </Card>
    </>
  );
}
