//! Feature gates: which there are in v1.37, how settled each is, and which are open here.
//!
//! A gate without a meaning here is known all the same: whoever sets it gets upstream's answer, and it is told with the
//! others (`/flagz`, `kubernetes_feature_enabled`). What a gate opens is said where it opens something.

use std::collections::BTreeMap;

/// How settled a gate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Alpha,
    Beta,
    /// Generally available.
    Stable,
    Deprecated,
}

impl Stage {
    /// As upstream's metric spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alpha => "ALPHA",
            Self::Beta => "BETA",
            Self::Stable => "",
            Self::Deprecated => "DEPRECATED",
        }
    }
}

/// One gate of v1.37.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    pub name: &'static str,
    pub stage: Stage,
    /// Open if nobody says otherwise.
    pub default: bool,
    /// Nobody may say otherwise.
    pub locked: bool,
}

const OFF: bool = false;
const ON: bool = true;
const FREE: bool = false;
const LOCKED: bool = true;

/// Names, apart by white space, of gates alike.
#[rustfmt::skip]
const GATES: &[(Stage, bool, bool, &str)] = &[
    (Stage::Alpha, OFF, FREE,
        "APIServerWebhookAuthenticationToken APIServingWithRoutine ActivationPool AtomicWriteVolumeUserFields CBORServingAndStorage \
         CPUManagerPolicyAlphaOptions CRIListStreaming CSIVolumeHealth CgroupOptions ClientsAllowCBOR ClientsPreferCBOR \
         CloudControllerManagerWatchBasedRoutesReconciliation CloudControllerManagerWebhook CompositePodGroup ConditionalAuthorization \
         ConsistentListFromCacheSkipTimeoutFallback ContainerStopSignals ContainerUlimits CrossNamespaceVolumeDataSource \
         DRADerivedAttributes DRADeviceCompatibilityGroups DRAListTypeAttributes DRANodeAllocatableResources DRAOptionalNodeOperations \
         DRAPartitionableDevicesType DRAResourcePoolStatus DRASharedConsumableCapacity DefaultPodSysctls DeploymentPodReplacementPolicy \
         DownwardAPIAssignedResources EmptyDirVolumeMode EventedPLEG EvictionRequestAPI ExecEnvVar ExecRequestID GRPCContainerProbeTLS \
         H2CContainerProbe HPAExternalMetricFallback HPASelectionStrategy ImageVolumeWithDigest InPlacePodVerticalScalingExclusiveCPUs \
         InPlacePodVerticalScalingExclusiveMemory InPlacePodVerticalScalingMemoryBackedVolumes \
         InPlacePodVerticalScalingSchedulerPreemption InformerMetrics InterPodAffinityHostnameFastPath \
         KubeProxyNFTablesLocalhostNodePorts KubeletAllocatedPodsEndpoint KubeletCertCNValidation LoggingAlphaOptions MutablePVNodeAffinity \
         NodeLifecycleConditions NodeSystemPartition PSINodeCondition PerHandlerReadWriteTimeout PerPodPIDLimit PodGroupPreemptionPolicy \
         PodLevelCheckpointRestore PodLogsQuerySplitStreams QOSReserved ReduceDefaultCrashLoopBackOffDecay RuntimeClassInImageCriApi \
         SchedulerPreQueueingHints ShardedListAndWatch SidecarsRestartableDuringPodTermination StatefulSetRecreateStrategy \
         StorageVersionAPI TaintTolerationComparisonOperators TopologyAwareWorkloadScheduling TopologyManagerPolicyAlphaOptions \
         UserNamespacesHostNetworkSupport VolumeBindMountOptions WindowsCPUAndMemoryAffinity WorkloadWithJob"),
    (Stage::Beta, OFF, FREE,
        "CoordinatedLeaderElection DRAWorkloadResourceClaims GenericWorkload LocalStorageCapacityIsolationFSQuotaMonitoring \
         PodAndContainerStatsFromCRI SchedulerAsyncAPICalls"),
    (Stage::Beta, ON, FREE,
        "APIResponseCompression APIServerIdentity AllowParsingUserUIDFromCertAuth AllowUnsafeMalformedObjectDeletion AtomicFIFO \
         AuthorizePodWebsocketUpgradeCreatePermission CPUManagerPolicyBetaOptions CRDObservedGenerationTracking \
         ClearingNominatedNodeNameAfterBinding ClientsAllowCARotation ClientsAllowTLSCacheGC ComponentFlagz ComponentStatusz \
         ConcurrentWatchObjectDecode ConstrainedImpersonation ContainerCheckpoint ContainerRestartRules ContextualLogging \
         ControllerManagerReleaseLeaderElectionLockOnExit DRAConsumableCapacity DRADeviceBindingConditions DRAFractionalCapacityRange \
         DRAPartitionableDevices DRAResourceClaimGranularStatusAuthorization DRASchedulerFilterTimeout DeclarativeValidationBeta \
         DeploymentReplicaSetTerminatingReplicas DetectCacheInconsistency EtcdRangeStream ExcludeAdmissionWebhookVirtualResources \
         ExtendWebSocketsToKubelet GracefulNodeShutdown GracefulNodeShutdownBasedOnPodPriority HPAGeneration HPAOptimizedSelectorStore \
         HPAScaleToZero HugepageAwareEviction InOrderInformersBatchProcess InPlacePodLevelResourcesVerticalScaling \
         KubeletCrashLoopBackOffMax KubeletEnsureSecretPulledImages KubeletInUserNamespace KubeletSeparateDiskGC \
         KubeletServiceAccountTokenForCredentialProviders ListFromCacheSnapshot LoggingBetaOptions ManifestBasedAdmissionControlConfig \
         MatchLabelKeysInPodTopologySpread MatchLabelKeysInPodTopologySpreadSelectorMerge MaxUnavailableStatefulSet MemoryQoS \
         MutablePodResourcesForSuspendedJobs MutableSchedulingDirectivesForSuspendedJobs NFTablesNetlink NativeHistograms \
         NodeControllerLeaseCircuitBreaker NominatedNodeNameForExpectation OpenAPIEnums OpportunisticBatching \
         PersistentVolumeClaimUnusedSinceTime PodDeletionCost PodLevelResourceManagers PodLevelResourcesFixDefaulting \
         PodLevelResourcesFixKubeletQOSClass PodTopologyLabelsAdmission PodsAPI PortForwardWebsockets PreventStaticPodAPIReferences ReloadKubeletClientCAFile \
         ReloadKubeletServerCertificateFile RemoteRequestHeaderUID ResourceHealthStatus ResourceHealthStatusMessage \
         RestartAllContainersOnContainerExits RotateKubeletServerCertificate SchedulerAsyncPreemption SchedulerPopFromBackoffQ \
         ServiceAccountNodeAudienceRestriction SizeBasedListCostEstimate StaleControllerConsistencyDaemonSet \
         StaleControllerConsistencyHPA StaleControllerConsistencyJob StaleControllerConsistencyReplicaSet \
         StaleControllerConsistencyStatefulSet StorageCapacityScoring StorageVersionHash StrictIPCIDRValidation \
         StructuredAuthenticationConfigurationEgressSelector StructuredAuthenticationConfigurationJWKSMetrics \
         TokenRequestServiceAccountUIDValidation TopologyManagerPolicyBetaOptions TranslateStreamCloseWebsocketRequests \
         UnauthenticatedHTTP2DOSMitigation UnknownVersionInteroperabilityProxy UnlockWhileProcessingFIFO VolumeLimitScaling WatchList \
         WatchListClient WatchListCompression WebhookRoundTripLoadBalancing WindowsGracefulNodeShutdown"),
    (Stage::Stable, ON, FREE,
        "AllowServiceExternalIPs ClusterTrustBundle ClusterTrustBundleProjection CustomCPUCFSQuotaPeriod DRADeviceTaintRules \
         DRADeviceTaints EnvFiles MutatingAdmissionPolicy PodCertificateRequest PodLevelResources SELinuxMount \
         StatefulSetSemanticRevisionComparison StorageVersionMigrator"),
    (Stage::Stable, ON, LOCKED,
        "APIServerTracing AnonymousAuthConfigurableEndpoints AnyVolumeDataSource AuthorizeNodeWithSelectors AuthorizeWithSelectors \
         BtreeWatchCache CPUManagerPolicyOptions CRDValidationRatcheting CSIServiceAccountTokenSecrets ConsistentListFromCache \
         CustomResourceFieldSelectors DRAAdminAccess DRAExtendedResource DRAPrioritizedList DRAResourceClaimDeviceStatus \
         DeclarativeValidation DisableAllocatorDualWrite DynamicResourceAllocation ExecProbeTimeout ExternalServiceAccountTokenSigner \
         HPAConfigurableTolerance HostnameOverride ImageMaximumGCAge ImageVolume InOrderInformers InPlacePodVerticalScaling \
         InPlacePodVerticalScalingInitContainers JobManagedBy KubeletCgroupDriverFromCRI KubeletFineGrainedAuthz KubeletPSI \
         KubeletPodResourcesDynamicResources KubeletPodResourcesGet KubeletTracing MatchLabelKeysInPodAffinity \
         MultiCIDRServiceAllocator MutableCSINodeAllocatableCount NFTablesProxyMode NodeDeclaredFeatures \
         NodeInclusionPolicyInPodTopologySpread NodeLogQuery NodeSwap PLEGOnDemandRelist PodObservedGenerationTracking \
         PodReadyToStartContainersCondition PodSchedulingReadiness PreferSameTrafficDistribution ProcMountType \
         RecoverVolumeExpansionFailure RecursiveReadOnlyMounts RelaxedEnvironmentVariableValidation RelaxedServiceNameValidation \
         SELinuxChangePolicy SELinuxMountReadWriteOncePod SeparateTaintEvictionController ServiceAccountTokenJTI \
         ServiceAccountTokenNodeBinding ServiceAccountTokenNodeBindingValidation ServiceAccountTokenPodNodeInfo \
         SupplementalGroupsPolicy SystemdWatchdog TopologyManagerPolicyOptions UserNamespacesSupport VolumeAttributesClass \
         WatchCacheInitializationPostStartHook WinDSR WinOverlay"),
    (Stage::Deprecated, ON, FREE,
        "InformerResourceVersion KubeProxyIPVS KubeletPodResourcesListUseActivePods ServiceCIDRStatusFieldWiping \
         StorageNamespaceIndex"),
    (Stage::Deprecated, ON, LOCKED,
        "AggregatedDiscoveryRemoveBetaType DisableCPUQuotaWithExclusiveCPUs DisableNodeKubeProxyVersion"),
    (Stage::Deprecated, OFF, FREE,
        "AllowDNSOnlyNodeCSR AllowInsecureKubeletCertificateSigningRequests ChangeContainerStatusOnKubeletRestart KMSv1 \
         KubeletRegistrationGetOnExistsOnly WindowsHostNetwork"),
    (Stage::Deprecated, OFF, LOCKED,
        "AllowOverwriteTerminationGracePeriodSeconds DeclarativeValidationTakeover GitRepoVolumeDriver SeparateCacheWatchRPC"),
];

/// Gates that stand for all of a stage.
const ALL: [(&str, Stage); 2] = [("AllAlpha", Stage::Alpha), ("AllBeta", Stage::Beta)];

/// Every gate of v1.37.
pub fn known() -> impl Iterator<Item = Gate> {
    GATES.iter().flat_map(|(stage, default, locked, names)| {
        names.split_whitespace().map(|name| Gate { name, stage: *stage, default: *default, locked: *locked })
    })
}

/// The gates as somebody set them.
#[derive(Clone, Debug, Default)]
pub struct Gates {
    set: BTreeMap<String, bool>,
}

impl Gates {
    /// Takes what was said, the last word on a gate counting; refuses in upstream's words.
    pub fn new(said: impl IntoIterator<Item = (String, bool)>) -> Result<Self, String> {
        let set: BTreeMap<String, bool> = said.into_iter().collect();
        for (name, open) in &set {
            if ALL.iter().any(|(all, _)| all == name) {
                continue;
            }
            let gate = known().find(|g| g.name == name).ok_or_else(|| format!("unrecognized feature gate: {name}"))?;
            if gate.locked && *open != gate.default {
                return Err(format!("cannot set feature gate {name} to {open}, feature is locked to {}", gate.default));
            }
        }
        Ok(Self { set })
    }

    fn state(&self, gate: &Gate) -> bool {
        let of_stage = || {
            let all = ALL.iter().find(|(_, stage)| *stage == gate.stage).map(|(name, _)| *name)?;
            self.set.get(all).copied().filter(|_| !gate.locked)
        };
        self.set.get(gate.name).copied().or_else(of_stage).unwrap_or(gate.default)
    }

    pub fn is_open(&self, name: &str) -> bool {
        known().find(|gate| gate.name == name).is_some_and(|gate| self.state(&gate))
    }

    /// Every gate, and whether it is open.
    pub fn all(&self) -> impl Iterator<Item = (Gate, bool)> {
        known().map(|gate| (gate, self.state(&gate)))
    }

    /// What was said, as the flag spells it.
    pub fn flag(&self) -> String {
        self.set.iter().map(|(name, open)| format!("{name}={open}")).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(said: &[(&str, bool)]) -> Result<Gates, String> {
        Gates::new(said.iter().map(|(n, o)| (n.to_string(), *o)))
    }

    #[test]
    fn each_gate_is_said_once() {
        let mut names: Vec<&str> = known().map(|g| g.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn gates_open_as_told() {
        let check = |said: &[(&str, bool)], gate: &str, open: bool| {
            assert_eq!(set(said).unwrap().is_open(gate), open, "{gate} after {said:?}");
        };
        check(&[], "GenericWorkload", false);
        check(&[("GenericWorkload", true)], "GenericWorkload", true);
        check(&[("AllBeta", true)], "GenericWorkload", true);
        check(&[("AllBeta", true), ("GenericWorkload", false)], "GenericWorkload", false);
        check(&[("AllBeta", false)], "WatchList", false);
        check(&[("AllAlpha", true)], "EvictionRequestAPI", true);
        check(&[], "PodCertificateRequest", true);
    }

    #[test]
    fn what_cannot_be_set_is_refused() {
        let refused = |said: &[(&str, bool)], why: &str| assert_eq!(set(said).unwrap_err(), why);
        refused(&[("NoSuch", true)], "unrecognized feature gate: NoSuch");
        refused(
            &[("ProbeHostPodSecurityStandards", false)],
            "unrecognized feature gate: ProbeHostPodSecurityStandards",
        );
        refused(
            &[("DynamicResourceAllocation", false)],
            "cannot set feature gate DynamicResourceAllocation to false, feature is locked to true",
        );
        assert!(set(&[("DynamicResourceAllocation", true)]).is_ok());
    }
}
